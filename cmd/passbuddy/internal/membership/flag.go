package membership

import (
	"fmt"
	"strconv"

	"github.com/spf13/pflag"
)

// CapacityEnv stands for --capacity where that is not given.
const CapacityEnv = "PASSBUDDY_CAPACITY"

// AddFlag adds --capacity, whose absence is 0.
func AddFlag(flags *pflag.FlagSet, capacity *int, usage string) {
	flags.IntVar(capacity, "capacity", 0, usage)
}

// Resolve fills in a capacity that no flag gave from the environment, and checks it. 0 stays where
// neither gives one.
func Resolve(capacity *int, getenv func(string) string) error {
	source, text := "--capacity", ""
	if *capacity == 0 {
		source, text = CapacityEnv, getenv(CapacityEnv)
	}
	if text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return fmt.Errorf("%s is %q: it must be a number from 1 to %d", source, text, Most)
		}
		*capacity = n
	}
	if *capacity < 0 || *capacity > Most {
		return fmt.Errorf("%s is %d: it must be from 1 to %d", source, *capacity, Most)
	}
	return nil
}
