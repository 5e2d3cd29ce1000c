package object

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/remote"
	"github.com/stasis-cr/stasis/cr/sys"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// An epoll remembers its targets by (struct file, descriptor number). The number
// belongs to the process that added the entry, so entries are added there again.
func ePollKind() Kind {
	return Kind{
		Tag: "epoll", Rev: 1,
		New:     func() proto.Message { return &blob.EPoll{} },
		Match:   func(_ *Capture, d *Desc) bool { return d.anon("eventpoll") },
		Capture: captureEPoll,
		Finish:  finishEPolls,
		Open:    openEPoll,
		Link:    linkEPoll,
	}
}

// captureEPoll takes the numbers, modes and data; what is behind the numbers only
// all descriptions together tell. A one-shot entry that has fired shows no events
// and is restored so, but for errors and hang-ups, which the kernel adds.
func captureEPoll(_ context.Context, _ *Capture, d *Desc) (proto.Message, error) {
	e := &blob.EPoll{}
	for _, t := range d.info.EPoll {
		e.Entries = append(e.Entries, &blob.EPoll_Entry{Fd: int32(t.FD), Events: t.Events, Data: t.Data})
	}
	return e, nil
}

// finishEPolls finds for every entry the description that is watched, and a
// process that holds both it and the epoll.
func finishEPolls(ctx context.Context, c *Capture, of []*object) error {
	byFile := map[uint32][]place{}
	byFD := map[int][]place{}
	for _, p := range c.places {
		byFile[p.id] = append(byFile[p.id], p)
		byFD[p.fd] = append(byFD[p.fd], p)
	}
	var all []error
	for _, o := range of {
		holds := map[int]bool{}
		for _, p := range byFile[o.file.Id] {
			holds[p.pid] = true
		}
		seen := map[int32]uint32{} // entries with one number are told apart by their order
		for _, t := range o.body.(*blob.EPoll).Entries {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			w := watch{c: c, o: o, t: t, nth: seen[t.Fd], holds: holds}
			seen[t.Fd]++
			err := w.find(byFD[int(t.Fd)])
			if err != nil && (!c.env.Survey || !vanished(err)) {
				all = append(all, o.desc.wrap(err))
			}
		}
	}
	return errors.Join(all...)
}

// watch is one entry of an epoll whose target is looked for.
type watch struct {
	c     *Capture
	o     *object
	t     *blob.EPoll_Entry
	nth   uint32
	holds map[int]bool // processes that hold the epoll
}

// is asks the kernel whether a descriptor is the target.
func (w *watch) is(p place) (bool, error) {
	r, err := sys.KcmpEpollTFD(p.hostPID, p.fd, w.o.desc.HostPID, w.o.desc.FD, int(w.t.Fd), w.nth)
	if err != nil {
		return false, fmt.Errorf("kcmp: %w", err)
	}
	return r == 0, nil
}

// find tries the descriptors with the entry's number first. A target that is
// left only under another number of the process can be restored, too.
func (w *watch) find(likely []place) error {
	for _, list := range [][]place{likely, w.c.places} {
		for _, p := range list {
			if !w.holds[p.pid] {
				continue
			}
			is, err := w.is(p)
			if err != nil {
				return err
			}
			if is {
				w.t.Pid, w.t.File = int32(p.pid), p.id
				return w.usable(p)
			}
		}
	}
	return unsupported("it watches descriptor %d, which no process that has the epoll holds any more", w.t.Fd)
}

// usable: to add an entry again its number must be the target's, or free.
func (w *watch) usable(p place) error {
	if p.fd == int(w.t.Fd) {
		return nil
	}
	for _, q := range w.c.places {
		if q.pid == p.pid && q.fd == int(w.t.Fd) {
			return unsupported("it watches what was descriptor %d before that number was used again", w.t.Fd)
		}
	}
	return nil
}

// openEPoll makes it empty: its targets are in place only when tables are.
func openEPoll(context.Context, *Restorer, *record) (int, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("epoll_create1: %w", err)
	}
	return fd, nil
}

// linkEPoll adds the entries that p is to add.
func linkEPoll(ctx context.Context, _ *Restorer, rec *record, p Process) error {
	var mine []*blob.EPoll_Entry
	for _, t := range rec.body.(*blob.EPoll).Entries {
		if int(t.Pid) == p.PID {
			mine = append(mine, t)
		}
	}
	if len(mine) == 0 {
		return nil
	}
	epfd := p.number(rec.file.Id)
	if epfd < 0 {
		return corrupt("it does not hold the epoll")
	}
	at := map[int32]uint32{}
	for _, fd := range p.Table.GetFds() {
		at[fd.Fd] = fd.File
	}
	for len(mine) > 0 {
		n := min(len(mine), perSend)
		if err := addEntries(ctx, p, epfd, mine[:n], at); err != nil {
			return err
		}
		mine = mine[n:]
	}
	return nil
}

// addEntries adds some entries in one batch. struct epoll_event is packed on
// x86-64: 12 bytes.
func addEntries(
	ctx context.Context, p Process, epfd int32, entries []*blob.EPoll_Entry, at map[int32]uint32,
) error {
	const size = 12
	var events []byte
	for _, t := range entries {
		events = binary.LittleEndian.AppendUint32(events, t.Events)
		events = binary.LittleEndian.AppendUint64(events, t.Data)
	}
	mem, err := p.Caller.Push(events)
	if err != nil {
		return err
	}
	defer p.Caller.Reset()
	var calls []remote.Call
	for i, t := range entries {
		add := remote.Call{NR: unix.SYS_EPOLL_CTL, Args: [6]uint64{
			uint64(epfd), unix.EPOLL_CTL_ADD, uint64(t.Fd), uint64(mem) + uint64(i*size),
		}}
		held := at[t.Fd]
		if held == t.File {
			calls = append(calls, add)
			continue
		}
		n := p.number(t.File)
		if held != 0 || n < 0 || t.Fd < 0 {
			return corrupt("it does not hold file %d as descriptor %d", t.File, t.Fd)
		}
		calls = append(calls,
			remote.Call{NR: unix.SYS_DUP3, Args: [6]uint64{uint64(n), uint64(t.Fd), unix.O_CLOEXEC}}, add,
			remote.Call{NR: unix.SYS_CLOSE, Args: [6]uint64{uint64(t.Fd)}})
	}
	return batch(ctx, p.Caller, calls)
}
