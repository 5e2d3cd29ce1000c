package cr

import (
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
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

// ballast is memory that is never touched, and so takes none, but counts for the
// garbage collector: it begins when there is as much again, and not at 4 MiB as for a
// small program. What a checkpoint or a restore throws away is less than that, unless
// there are very many tasks, and the collector took a tenth of the time of a small one.
var ballast []byte

const ballastSize = 32 << 20

var takeBallast = sync.OnceFunc(func() { ballast = make([]byte, ballastSize) })

// hurry puts this thread before others of this machine until calm is called: a
// container waits for it. Without CAP_SYS_NICE it stays where it is.
func hurry() (calm func()) {
	const hurried = -10
	was, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil || unix.Setpriority(unix.PRIO_PROCESS, 0, hurried) != nil {
		return func() {}
	}
	return func() {
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, kernelNice-was) //nolint:errcheck // as it could be raised
	}
}

// kernelNice is what the system call subtracts the nice value from, so that its
// answer is never negative (getpriority(2)).
const kernelNice = 20
