package passbuddy

import (
	"database/sql/driver"
	"errors"
	"fmt"
)

// checkLate does for an operation that opened its connection what database/sql's driverArgsConnLocked would have done before
// it: CheckNamedValue has let the arguments through as they came.
func (c *conn) checkLate(args []driver.NamedValue) ([]driver.NamedValue, error) {
	kept := args[:0]
	for _, v := range args {
		v.Ordinal = len(kept) + 1
		err := driver.ErrSkip
		if c.ph.checker != nil {
			err = c.ph.checker.CheckNamedValue(&v)
		}
		if errors.Is(err, driver.ErrSkip) {
			v.Value, err = driver.DefaultParameterConverter.ConvertValue(v.Value)
		}
		switch {
		case err == nil:
			kept = append(kept, v)
		case errors.Is(err, driver.ErrRemoveArgument):
		case v.Name != "":
			return nil, fmt.Errorf("sql: converting argument with name %q type: %w", v.Name, err)
		default:
			return nil, fmt.Errorf("sql: converting argument $%d type: %w", v.Ordinal, err)
		}
	}
	return kept, nil
}
