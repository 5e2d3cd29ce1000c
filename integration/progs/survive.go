package main

import (
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"
)

// survive counts for ever: goroutines that sleep, one that computes and
// allocates, and a ticker that prints a number only when all have moved on.
func survive() {
	var naps, loops atomic.Int64
	for range 50 {
		go func() {
			for {
				naps.Add(1)
				time.Sleep(time.Millisecond)
			}
		}()
	}
	go func() {
		for {
			garbage := make([]byte, 1<<16)
			loops.Add(int64(len(garbage)) >> 16)
			runtime.Gosched()
		}
	}()
	var n, wasNaps, wasLoops int64
	for range time.Tick(5 * time.Millisecond) {
		a, b := naps.Load(), loops.Load()
		if a < wasNaps || b < wasLoops {
			fmt.Println("FAIL: a counter went back")
			os.Exit(1)
		}
		if a == wasNaps || b == wasLoops {
			continue
		}
		wasNaps, wasLoops = a, b
		n++
		fmt.Println(n)
	}
}
