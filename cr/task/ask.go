package task

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/remote"
)

// ask is one system call for a task to make, with what to lend it and what to do
// with the answer. Kinds return lists of asks; run makes one batch of them.
type ask struct {
	what string // for messages: "sigaltstack"
	nr   uintptr
	args [6]uint64

	in    []byte // lent to the task; its address becomes args[inArg]
	inArg int
	// A second pointer into in, at offset alsoAt, if alsoArg is not 0.
	alsoArg, alsoAt int
	// A pointer within in: the address of what begins at in[selfTo] is stored at
	// in[selfAt], if selfTo is not 0.
	selfAt, selfTo int

	out    int // bytes lent for the answer; their address becomes args[outArg]
	outArg int

	// done takes the answer. A nil done wants success and drops the value.
	done func(ret uint64, out []byte) error
	// may lists errors that are no failure; done is not called then.
	may []unix.Errno
}

// errnoOf tells a system call's error from its value.
func errnoOf(ret uint64) (unix.Errno, bool) {
	if int64(ret) < 0 && int64(ret) >= -4095 {
		return unix.Errno(-int64(ret)), true
	}
	return 0, false
}

// run makes all calls in one batch and hands out the answers.
func run(ctx context.Context, c remote.Caller, asks []ask) error {
	if len(asks) == 0 {
		return nil
	}
	defer c.Reset()
	calls := make([]remote.Call, len(asks))
	outs := make([]remote.Addr, len(asks))
	for i := range asks {
		a := &asks[i]
		calls[i] = remote.Call{NR: a.nr, Args: a.args}
		if a.in != nil {
			at, err := a.lend(c)
			if err != nil {
				return fmt.Errorf("%s: %w", a.what, err)
			}
			calls[i].Args[a.inArg] = uint64(at)
			if a.alsoArg != 0 {
				calls[i].Args[a.alsoArg] = uint64(at) + uint64(a.alsoAt)
			}
		}
		if a.out > 0 {
			at, err := c.Push(make([]byte, a.out))
			if err != nil {
				return fmt.Errorf("%s: %w", a.what, err)
			}
			outs[i] = at
			calls[i].Args[a.outArg] = uint64(at)
		}
	}
	if err := c.Batch(ctx, calls); err != nil {
		return err
	}
	for i := range asks {
		if err := asks[i].answer(c, calls[i].Ret, outs[i]); err != nil {
			return fmt.Errorf("%s: %w", asks[i].what, err)
		}
	}
	return nil
}

// lend puts a.in into the task's memory; what selfTo points at goes first.
func (a *ask) lend(c remote.Caller) (remote.Addr, error) {
	if a.selfTo == 0 {
		return c.Push(a.in)
	}
	at, err := c.Push(a.in[a.selfTo:])
	if err != nil {
		return 0, err
	}
	head := slices.Clone(a.in[:a.selfTo])
	le.PutUint64(head[a.selfAt:], uint64(at))
	return c.Push(head)
}

func (a *ask) answer(c remote.Caller, ret uint64, at remote.Addr) error {
	if errno, bad := errnoOf(ret); bad {
		if slices.Contains(a.may, errno) {
			return nil
		}
		return errno
	}
	if a.done == nil {
		return nil
	}
	var out []byte
	if a.out > 0 {
		out = make([]byte, a.out)
		if err := c.Read(at, out); err != nil {
			return err
		}
	}
	return a.done(ret, out)
}

var le = binary.LittleEndian

// u64s encodes words as the kernel's structures of longs want them.
func u64s(words ...uint64) []byte {
	b := make([]byte, 0, 8*len(words))
	for _, w := range words {
		b = le.AppendUint64(b, w)
	}
	return b
}

// word returns the i-th long of b.
func word(b []byte, i int) uint64 { return le.Uint64(b[8*i:]) }
