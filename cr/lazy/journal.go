package lazy

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/sys"
)

// Journal lists in shared memory what happened to the tables of a plan, in
// order. It is used by one process at a time, from one goroutine at a time.
//
//	 0  8  magic
//	 8  4  number of entries
//	64     entries of 40 bytes: a struct uffd_msg of 32, u32 address space, u32 flags
//
// The message of an event is read by the kernel's own hand into the entry behind
// the last: a process that is killed is killed before the read or after it, and
// after it the message is there. Only then the number grows.
type Journal struct {
	mem   []byte
	count int
}

const (
	journalMagic   = 0x316c6e72_757a616c
	journalCountAt = 8
	journalHeader  = 64
	entrySize      = sys.UFFDMsgSize + 8

	// journalEntries is for how many entries there is room, until the plan is
	// written anew. Memory is used as it fills.
	journalEntries = 1 << 17
)

// Entries of our own beside the kernel's events.
const (
	eventDone = 0x80 // the pages from Start to End are there
	eventGone = 0x81 // the address space is given up
)

var errBadJournal = errors.New("journal is damaged")

// newJournal makes the memory of an empty journal.
func newJournal(entries int) (*os.File, error) {
	f, err := memfd("stasis-lazy-journal")
	if err != nil {
		return nil, err
	}
	b := make([]byte, journalHeader)
	le.PutUint64(b, journalMagic)
	if _, err = f.WriteAt(b, 0); err == nil {
		err = f.Truncate(int64(journalHeader + entries*entrySize))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("journal: %w", err), f.Close())
	}
	return f, nil
}

// openJournal maps a journal. f stays the caller's.
func openJournal(f *os.File) (*Journal, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if st.Size() < journalHeader+entrySize || st.Size() > 1<<30 {
		return nil, errBadJournal
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the journal: %w", err)
	}
	j := &Journal{mem: b, count: int(counter(b).Load())}
	if le.Uint64(b) != journalMagic || j.count > j.room() {
		return nil, errors.Join(errBadJournal, j.close())
	}
	return j, nil
}

func (j *Journal) close() error { return unix.Munmap(j.mem) }

func (j *Journal) room() int { return (len(j.mem) - journalHeader) / entrySize }

// full says that it is time to write a new plan. There is some room left for
// what happens until then.
func (j *Journal) full() bool { return j.count > j.room()*3/4 }

func (j *Journal) entry(i int) []byte {
	at := journalHeader + i*entrySize
	return j.mem[at : at+entrySize]
}

// tail is where the message of the next event of a space is to be read to.
// Without room there is none.
func (j *Journal) tail(space uint32) ([]byte, error) {
	if j.count >= j.room() {
		return nil, fmt.Errorf("the journal has no room for an event of address space %d", space)
	}
	e := j.entry(j.count)
	clear(e)
	le.PutUint32(e[sys.UFFDMsgSize:], space)
	return e[:sys.UFFDMsgSize], nil
}

// flagCalm of an entry: nothing was outstanding when the event came.
const flagCalm = 1

// judge notes that the event at the tail came when nothing was outstanding.
func (j *Journal) judge(calm bool) {
	if calm {
		le.PutUint32(j.entry(j.count)[sys.UFFDMsgSize+4:], flagCalm)
	}
}

// keep makes the entry at the tail one of the journal's.
func (j *Journal) keep() {
	j.count++
	counter(j.mem).Store(uint32(j.count))
}

// drop forgets the message at the tail, which changed nothing.
func (j *Journal) drop() {
	if j.count < j.room() {
		j.entry(j.count)[0] = 0
	}
}

// append adds an entry of our own.
func (j *Journal) append(space uint32, event byte, start, end uint64) error {
	b, err := j.tail(space)
	if err != nil {
		return err
	}
	b[0] = event
	le.PutUint64(b[8:], start)
	le.PutUint64(b[16:], end)
	j.keep()
	return nil
}

// change is one entry.
type change struct {
	space uint32
	calm  bool
	sys.UFFDMsg
}

func parseChange(e []byte) (change, error) {
	flags := le.Uint32(e[sys.UFFDMsgSize+4:])
	c := change{space: le.Uint32(e[sys.UFFDMsgSize:]), calm: flags&flagCalm != 0}
	switch e[0] {
	case eventDone, eventGone:
		c.Event, c.Start, c.End = e[0], le.Uint64(e[8:]), le.Uint64(e[16:])
		return c, nil
	}
	var err error
	c.UFFDMsg, err = sys.ParseUFFDMsg(e[:sys.UFFDMsgSize])
	return c, err
}

// changes lists what the journal holds. left is what a server that died had read
// and not yet made an entry, if that was an event.
func (j *Journal) changes() (list []change, left *change, err error) {
	for i := range j.count {
		c, err := parseChange(j.entry(i))
		if err != nil {
			return nil, nil, fmt.Errorf("%w: entry %d: %w", errBadJournal, i, err)
		}
		list = append(list, c)
	}
	if j.count < j.room() {
		if e := j.entry(j.count); e[0] != 0 && e[0] != sys.UFFDPageFault {
			c, err := parseChange(e)
			if err != nil {
				return nil, nil, fmt.Errorf("%w: tail: %w", errBadJournal, err)
			}
			if c.Event != eventDone && c.Event != eventGone { // ours count when they are counted
				left = &c
			}
		}
	}
	return list, left, nil
}
