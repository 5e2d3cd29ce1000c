package procfs

import (
	"bytes"
	encoding "encoding/hex"
	"math"
)

// timer reads one of a timerfd's five lines.
func (p *fdParser) timer(key string, v []byte) bool {
	if p.TimerFD == nil {
		p.TimerFD = &TimerFD{}
	}
	t := p.TimerFD
	switch key {
	case "clockid":
		return dec(v, &t.Clock)
	case "ticks":
		return dec(v, &t.Ticks)
	case "settime flags":
		return oct(v, &t.SettimeFlags)
	case "it_value":
		return timespec(v, &t.ValueNS)
	}
	return timespec(v, &t.IntervalNS)
}

// timespec takes "(seconds, nanoseconds)".
func timespec(b []byte, to *int64) bool {
	b = bytes.Trim(b, " ()")
	sec, nsec, ok := bytes.Cut(b, []byte(", "))
	var s, ns int64
	if !ok || !number(sec, 10, &s) || !number(nsec, 10, &ns) {
		return false
	}
	if s < 0 || s > math.MaxInt64/1_000_000_000-1 || ns < 0 || ns >= 1e9 {
		return false
	}
	*to = s*1e9 + ns
	return true
}

// pairs calls f for each "key:value" word of b. A blank may follow the colon.
func pairs(b []byte, f func(key string, value []byte) bool) bool {
	for b = bytes.TrimLeft(b, " "); len(b) > 0; b = bytes.TrimLeft(b, " ") {
		key, rest, ok := bytes.Cut(b, []byte(":"))
		if !ok {
			return false
		}
		var value []byte
		value, b = cutWord(rest)
		if !f(string(key), value) {
			return false
		}
	}
	return true
}

// target reads "tfd:  3 events:  19 data:  3  pos:0 ino:40e sdev:10".
func (p *fdParser) target(line []byte) bool {
	var t EPollTarget
	ok := pairs(line, func(key string, v []byte) bool {
		switch key {
		case "tfd":
			return number(v, 10, &t.FD)
		case "events":
			return number(v, 16, &t.Events)
		case "data":
			return number(v, 16, &t.Data)
		case "pos":
			return number(v, 10, &t.Pos)
		case "ino":
			return number(v, 16, &t.Ino)
		case "sdev":
			return number(v, 16, &t.Dev)
		}
		return false
	})
	p.EPoll = append(p.EPoll, t)
	return ok
}

// watch reads "inotify wd:1 ino:3c4a3 sdev:fe00000 mask:fff ignored_mask:0 ...".
// All its numbers are hexadecimal.
func (p *fdParser) watch(line []byte) bool {
	var w InotifyWatch
	var h handle
	ok := pairs(line[len("inotify "):], func(key string, v []byte) bool {
		switch key {
		case "wd":
			return number(v, 16, &w.WD)
		case "ino":
			return number(v, 16, &w.Ino)
		case "sdev":
			return number(v, 16, &w.Dev)
		case "mask":
			return number(v, 16, &w.Mask)
		case "ignored_mask":
			return number(v, 16, &w.Ignored)
		}
		return h.set(key, v)
	})
	w.Handle = h.Handle
	p.Inotify = append(p.Inotify, w)
	return ok && h.whole()
}

// handle is a Handle while its words come.
type handle struct {
	*Handle
	size int
}

// set takes "fhandle-bytes:8", "fhandle-type:1", "f_handle:a3c4030000000000".
func (h *handle) set(key string, v []byte) bool {
	if h.Handle == nil {
		h.Handle = &Handle{}
	}
	switch key {
	case "fhandle-bytes":
		return number(v, 16, &h.size)
	case "fhandle-type":
		return number(v, 16, &h.Type)
	case "f_handle":
		h.Data = make([]byte, encoding.DecodedLen(len(v)))
		_, err := encoding.Decode(h.Data, v)
		return err == nil
	}
	return false
}

func (h *handle) whole() bool { return h.Handle == nil || len(h.Data) == h.size }

// fanotify reads the group's line or keeps one of a mark.
func (p *fdParser) fanotify(line []byte) bool {
	if p.Fanotify == nil {
		p.Fanotify = &Fanotify{}
	}
	f := p.Fanotify
	if !bytes.HasPrefix(line, []byte("fanotify flags:")) {
		f.Marks = append(f.Marks, string(line))
		return true
	}
	return pairs(line[len("fanotify "):], func(key string, v []byte) bool {
		switch key {
		case "flags":
			return number(v, 16, &f.Flags)
		case "event-flags":
			return number(v, 16, &f.EventFlags)
		}
		return false
	})
}

// lock reads "\t1: POSIX  ADVISORY  READ 18665 fe:00:9978017 5 14". Locks that
// wait for another are not in fdinfo.
func (p *fdParser) lock(v []byte) bool {
	w := bytes.Fields(v)
	if len(w) != 8 {
		return false
	}
	l := Lock{Kind: string(w[1]), State: string(w[2]), Type: string(w[3]), End: LockToEnd}
	dev := bytes.Split(w[5], []byte(":"))
	ok := len(dev) == 3 && number(w[4], 10, &l.PID) && number(dev[0], 16, &l.Major) &&
		number(dev[1], 16, &l.Minor) && number(dev[2], 10, &l.Ino) && number(w[6], 10, &l.Start) &&
		(string(w[7]) == "EOF" || number(w[7], 10, &l.End))
	p.Locks = append(p.Locks, l)
	return ok
}
