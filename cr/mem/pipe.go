package mem

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// poolSize is how many chunks a store keeps between being read and being
// written: a constant, 48 MiB with what they hold.
const poolSize = 48

// queueSize is how many jobs wait to be read before whoever finds more has to
// wait, too.
const queueSize = 64

// smallJob is how many pages are few: the jobs of a container of many processes,
// each with little left, share buffers.
const smallJob = chunkPages / 8

// pool lends buffers of ChunkSize bytes, poolSize at most, and pieces of them. It
// makes them when they are first needed and lends the one that came back last: its
// memory is still in the cache.
type pool struct {
	mu   sync.Mutex
	free []*buffer // nothing of them is lent
	open *buffer   // lends pieces; nil: none does
	made int
}

type buffer struct {
	b    []byte
	lent int // loans of it
	used int // bytes at its start that are lent, or were and are not free yet
}

// loan is memory that a pool has lent.
type loan struct {
	b  []byte
	of *buffer
}

// take lends memory for so many pages. It says no if all is lent.
func (p *pool) take(pages int) (loan, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pages > smallJob {
		b := p.whole()
		if b == nil {
			return loan{}, false
		}
		b.lent++
		return loan{b.b, b}, true
	}
	size := pages * PageSize
	if p.open == nil || p.open.used+size > len(p.open.b) {
		b := p.whole()
		if b == nil {
			return loan{}, false
		}
		p.open = b
	}
	at := p.open.used
	p.open.used += size
	p.open.lent++
	return loan{p.open.b[at:p.open.used:p.open.used], p.open}, true
}

// whole returns a buffer of which nothing is lent; nil if there is none.
func (p *pool) whole() *buffer {
	if n := len(p.free); n > 0 {
		b := p.free[n-1]
		p.free = p.free[:n-1]
		return b
	}
	if b := p.open; b != nil && b.lent == 0 {
		p.open = nil
		return b
	}
	if p.made == poolSize {
		return nil
	}
	p.made++
	return &buffer{b: make([]byte, ChunkSize)}
}

func (p *pool) give(l loan) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.of.lent--; l.of.lent > 0 {
		return
	}
	if l.of.used = 0; l.of != p.open {
		p.free = append(p.free, l.of)
	}
}

// The nice values of workers in the background: one that gives way to all others, and
// one that gets a tenth of a CPU which somebody else wants all of.
const (
	lowestPriority = 19
	lowPriority    = 10
)

// patience is for how long a worker in the background works before it judges whether
// it is let work at all, and starved is how many times as long its work takes then.
const (
	patience = time.Second
	starved  = 8
)

// share is how long a worker has worked, and how much of that it had a CPU.
type share struct{ wall, cpu time.Duration }

// add counts a piece of work, and says at times whether so many others want the CPU
// that the rest would take for ever.
func (s *share) add(wall, cpu time.Duration) (starves bool) {
	s.wall += wall
	s.cpu += cpu
	if s.wall <= patience {
		return false
	}
	starves = s.cpu*starved < s.wall
	*s = share{}
	return starves
}

// errClosed is what ends the workers of a saver that is given up.
var errClosed = errors.New("saver closed")

// pipe leads jobs from being handed over, through being read into a buffer, to
// being written. In a hurry its workers read as long as there are buffers, and
// write, as fast as they can, only to get one back. Else they write a chunk as
// soon as it is read: then it comes from the cache, and few buffers are used.
type pipe struct {
	pool        *pool
	read, write func(*job) error
	background  bool        // the workers have the lowest priority
	stop        func() bool // ends the watch over the context
	workers     sync.WaitGroup

	mu      sync.Mutex
	moved   *sync.Cond // something below has changed
	short   *sync.Cond // the queue is half empty: whoever fills it is not woken up for each job
	queue   []*job     // to be read, the first first
	full    []*job     // to be written, the last first
	reading int        // workers that read
	hurry   bool
	ended   bool // no more jobs will come
	err     error
}

// start makes the workers.
func (p *pipe) start(ctx context.Context) {
	p.moved, p.short = sync.NewCond(&p.mu), sync.NewCond(&p.mu)
	p.stop = context.AfterFunc(ctx, func() { p.fail(context.Cause(ctx)) })
	for range workers() {
		p.workers.Go(p.work)
	}
}

// fail makes the workers end after what they are at; the first error stays.
func (p *pipe) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
	p.moved.Broadcast()
	p.short.Broadcast()
}

// add hands a job over.
func (p *pipe) add(j *job) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for wait := len(p.queue) >= queueSize; p.err == nil && wait; wait = len(p.queue) > queueSize/2 {
		p.short.Wait()
	}
	if p.err != nil {
		return p.err
	}
	p.queue = append(p.queue, j)
	p.moved.Signal()
	return nil
}

// settle waits until nothing reads and nothing waits to be read; then there is
// no hurry any more.
func (p *pipe) settle() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.reading > 0 || p.err == nil && len(p.queue) > 0 {
		p.moved.Wait()
	}
	p.hurry = false
	p.moved.Broadcast()
	return p.err
}

// end waits for everything and ends the workers.
func (p *pipe) end() error {
	p.mu.Lock()
	p.ended = true
	p.hurry = false
	p.moved.Broadcast()
	p.mu.Unlock()
	p.workers.Wait()
	p.stop()
	for _, j := range p.full { // of a pipe that failed
		p.pool.give(j.buf)
	}
	p.full = nil
	return p.err
}

// work is a worker. In the background it gives way to all others, as long as there is
// anything left for it: to copy is not to be a matter of minutes on a busy machine.
func (p *pipe) work() {
	if p.background {
		runtime.LockOSThread() // and never unlock: the thread ends with the worker
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, lowestPriority); err != nil {
			p.fail(fmt.Errorf("nice: %w", err))
		}
	}
	var had share
	for {
		j, do := p.next()
		if j == nil {
			return
		}
		wall, cpu := time.Now(), threadTime()
		p.done(j, do(j))
		if p.background && had.add(time.Since(wall), threadTime()-cpu) {
			_ = unix.Setpriority(unix.PRIO_PROCESS, 0, lowPriority) //nolint:errcheck // without CAP_SYS_NICE it has to wait
		}
	}
}

// threadTime is how much of a CPU the calling thread has had.
func threadTime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// next waits for something to do. No job: there is nothing more.
func (p *pipe) next() (*job, func(*job) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.err == nil {
		if j := p.nextWrite(false); j != nil {
			return j, p.write
		}
		if j := p.nextRead(); j != nil {
			return j, p.read
		}
		if j := p.nextWrite(len(p.queue) > 0); j != nil { // no buffer is left
			return j, p.write
		}
		if p.ended && len(p.queue) == 0 && p.reading == 0 {
			break
		}
		p.moved.Wait()
	}
	return nil, nil
}

// nextWrite takes the chunk that was read last, while there is a hurry only if
// it is needed.
func (p *pipe) nextWrite(needed bool) *job {
	n := len(p.full)
	if n == 0 || p.hurry && !needed {
		return nil
	}
	j := p.full[n-1]
	p.full = p.full[:n-1]
	j.filled, j.plain = true, p.hurry
	return j
}

func (p *pipe) nextRead() *job {
	if len(p.queue) == 0 {
		return nil
	}
	j := p.queue[0]
	var ok bool
	if j.buf, ok = p.pool.take(j.pages); !ok {
		return nil
	}
	if p.queue = p.queue[1:]; len(p.queue) <= queueSize/2 {
		p.short.Broadcast()
	}
	p.reading++
	return j
}

// done takes a job back from a worker, and lets everyone look again.
func (p *pipe) done(j *job, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if j.filled {
		p.pool.give(j.buf)
		j.buf = loan{}
	} else {
		p.reading--
		p.full = append(p.full, j)
	}
	if p.err == nil && err != nil {
		p.err = err
		p.short.Broadcast()
	}
	p.moved.Broadcast()
}
