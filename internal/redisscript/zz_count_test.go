package redisscript

import (
	"fmt"
	"os"
	"sync"
)

var zzMu sync.Mutex
var zz = map[string]int{}

func count(s string) { zzMu.Lock(); zz[s]++; zzMu.Unlock() }
func countShow() {
	if os.Getenv("ZZ") != "" {
		for _, k := range keysInOrder(zz) {
			fmt.Println("ZZ", k, zz[k])
		}
	}
}
