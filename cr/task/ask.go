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
	// mayFail: as if may listed all errors.
	mayFail bool
}

// errnoOf tells a system call's error from its value.
func errnoOf(ret uint64) (unix.Errno, bool) {
	if int64(ret) < 0 && int64(ret) >= -4095 {
		return unix.Errno(-int64(ret)), true
	}
	return 0, false
}

// run makes all calls in one batch and hands out the answers. What is lent for them
// is one piece: first what the calls read, then room for what they write.
func run(ctx context.Context, c remote.Caller, asks []ask) error {
	if len(asks) == 0 {
		return nil
	}
	defer c.Reset()
	ins, size := layOut(asks, 0, func(a *ask) int { return len(a.in) })
	read := size
	outs, size := layOut(asks, size, func(a *ask) int { return a.out })
	base, err := c.Push(make([]byte, size))
	if err != nil {
		return fmt.Errorf("memory for %d calls: %w", len(asks), err)
	}
	calls := make([]remote.Call, len(asks))
	lent := make([]byte, read)
	for i := range asks {
		a := &asks[i]
		calls[i] = remote.Call{NR: a.nr, Args: a.args}
		if a.in != nil {
			at := uint64(base) + uint64(ins[i])
			calls[i].Args[a.inArg] = at
			if a.alsoArg != 0 {
				calls[i].Args[a.alsoArg] = at + uint64(a.alsoAt)
			}
			copy(lent[ins[i]:], a.in)
			if a.selfTo != 0 {
				le.PutUint64(lent[ins[i]+a.selfAt:], at+uint64(a.selfTo))
			}
		}
		if a.out > 0 {
			calls[i].Args[a.outArg] = uint64(base) + uint64(outs[i])
		}
	}
	if err := c.Write(base, lent); err != nil {
		return err
	}
	if err := c.Batch(ctx, calls); err != nil {
		return err
	}
	wrote := make([]byte, size-read)
	if err := c.Read(base+remote.Addr(read), wrote); err != nil {
		return err
	}
	for i := range asks {
		a := &asks[i]
		var out []byte
		if a.out > 0 {
			out = wrote[outs[i]-read:][:a.out:a.out]
		}
		if err := a.answer(calls[i].Ret, out); err != nil {
			return fmt.Errorf("%s: %w", a.what, err)
		}
	}
	return nil
}

// lentAlign is that of what is lent.
const lentAlign = 16

// layOut gives each ask so many bytes as of says, from offset at on, and returns
// where they are and where they end.
func layOut(asks []ask, at int, of func(*ask) int) (where []int, end int) {
	where = make([]int, len(asks))
	for i := range asks {
		where[i] = at
		at += (of(&asks[i]) + lentAlign - 1) &^ (lentAlign - 1)
	}
	return where, at
}

func (a *ask) answer(ret uint64, out []byte) error {
	if errno, bad := errnoOf(ret); bad {
		if a.mayFail || slices.Contains(a.may, errno) {
			return nil
		}
		return errno
	}
	if a.done == nil {
		return nil
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
