package cr

import (
	"runtime"
	"sync"
)

// inLongCalls is how many threads are likely to be in a system call that takes
// longer than the 20 µs after which the runtime takes it for one that sleeps.
const inLongCalls = 2

// moreThreads lets the runtime run two goroutines more than there are CPUs for.
// Those that copy memory spend their time in system calls of a third of a
// millisecond: the runtime gives their place to others meanwhile, and they wait to
// get it back, which took an eighth of a checkpoint and a sixth of a restore. It is a
// setting of the whole program.
var moreThreads = sync.OnceFunc(func() { runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + inLongCalls) })
