package blob

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/stasis-cr/stasis/cr/errs"
)

// Bounds that records must keep. Those of the kernel are its own, the others are
// far beyond what a container has.
const (
	pageSize    = 4096
	taskSize    = 1 << 47   // x86-64 with four levels of page tables
	maxPID      = 1 << 22   // PID_MAX_LIMIT
	maxSignal   = 64        // _NSIG
	gprSize     = 216       // struct user_regs_struct of x86-64
	sigInfoSize = 128       // siginfo_t
	maxComm     = 15        // TASK_COMM_LEN without its NUL
	maxPath     = 4096      // PATH_MAX
	maxRaw      = 4 << 20   // bytes of pages in one chunk
	maxFiles    = 1 << 22   // open files in all
	maxFD       = 1 << 24   // descriptor numbers
	maxOffset   = 1<<63 - 1 // loff_t
)

// Validate checks everything that can be checked without a machine: that ids are
// unique and resolve, that ranges lie where they must, and that numbers are such
// as the kernel can have given out. The error names the object that is wrong and
// wraps errs.ErrCorrupt, or errs.ErrVersion where another engine may know better.
func (img *Image) Validate() error {
	v := &validator{img: img}
	for _, check := range []func() error{
		v.host, v.container, v.namespaces, v.seccomp, v.pages, v.contents,
		v.files, v.tables, v.mms, v.processes, v.bodies,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// validator knows what has been checked so far.
type validator struct {
	img *Image

	names         map[string]bool // of files in the image directory
	contentsByID  map[uint32]*Contents
	filesByID     map[uint32]*File
	tablesByID    map[uint32]*FDTable
	mmsByID       map[uint32]*MM
	processByPID  map[int32]*Process
	tids          map[int32]bool
	usedMM        map[uint32]int32 // by which process
	usedTable     map[uint32]int32
	sessionOfPGID map[int32]int32
}

// bad is an error that says why an image is damaged.
func bad(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), errs.ErrCorrupt)
}

// in puts the name of an object before an error, if there is one.
func in(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), err)
}

// index makes a map of records by id and refuses an id of 0 and one that comes
// twice.
func index[R interface{ GetId() uint32 }](what string, list []R) (map[uint32]R, error) {
	m := make(map[uint32]R, len(list))
	for _, r := range list {
		id := r.GetId()
		if _, twice := m[id]; twice || id == 0 {
			return nil, bad("%s id %d is 0 or not unique", what, id)
		}
		m[id] = r
	}
	return m, nil
}

// path checks that a path is absolute and leads nowhere else than it says.
func path(s string) error {
	switch {
	case !strings.HasPrefix(s, "/"):
		return bad("path %.64q is not absolute", s)
	case len(s) > maxPath:
		return bad("path of %d bytes", len(s))
	case strings.IndexByte(s, 0) >= 0:
		return bad("path %.64q holds a NUL", s)
	}
	for part := range strings.SplitSeq(s, "/") {
		if part == ".." || part == "." {
			return bad("path %.64q is not the kernel's", s)
		}
	}
	return nil
}

// text checks a string that is passed on to the kernel or to people.
func text(what, s string, most int) error {
	if len(s) > most {
		return bad("%s of %d bytes", what, len(s))
	}
	if strings.IndexByte(s, 0) >= 0 {
		return bad("%s %.64q holds a NUL", what, s)
	}
	return nil
}

func comm(b []byte) error {
	if len(b) > maxComm || bytes.IndexByte(b, 0) >= 0 {
		return bad("name %.64q", b)
	}
	return nil
}

// fileName checks and takes the name of a file in the image directory: lower
// case letters, digits, dots and dashes, no dot in front, none that has another
// use there, and each only once.
func (v *validator) fileName(s string) error {
	if err := plainName(s); err != nil {
		return err
	}
	if v.names == nil {
		v.names = map[string]bool{}
	}
	if v.names[s] {
		return bad("file name %q is used twice", s)
	}
	v.names[s] = true
	return nil
}

// plainName checks a file's name alone.
func plainName(s string) error {
	plain := len(s) > 0 && len(s) <= 64 && s[0] != '.'
	for i := range len(s) {
		c := s[i]
		plain = plain && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '.' || c == '-')
	}
	switch s {
	case StateFile, "descriptors.json", "inventory.img", "dump.log", "restore.log", "stats-dump", "stats-restore",
		"working-set":
		plain = false
	}
	if !plain {
		return bad("file name %.64q", s)
	}
	return nil
}

func (v *validator) host() error {
	h := v.img.Host
	switch {
	case h == nil:
		return bad("host: no record")
	case h.PageSize != pageSize:
		return fmt.Errorf("host: page size %d: %w", h.PageSize, errs.ErrVersion)
	case h.CgroupVersion > 2:
		return fmt.Errorf("host: cgroup version %d: %w", h.CgroupVersion, errs.ErrVersion)
	case len(h.VdsoDigest) != 0 && len(h.VdsoDigest) != 32:
		return bad("host: digest of %d bytes", len(h.VdsoDigest))
	}
	for _, s := range []string{h.Machine, h.KernelRelease, h.EngineVersion} {
		if err := text("host", s, 256); err != nil {
			return err
		}
	}
	return nil
}

func (v *validator) container() error {
	c := v.img.Container
	switch {
	case c == nil:
		return bad("container: no record")
	case len(c.Externals) > 3:
		return bad("container: %d externals", len(c.Externals))
	case c.NsLastPid < 0 || c.NsLastPid > maxPID:
		return bad("container: last pid %d", c.NsLastPid)
	}
	for _, s := range append([]string{c.Id, c.Runtime}, c.Externals...) {
		if err := text("container", s, maxPath); err != nil {
			return err
		}
	}
	return nil
}

func (v *validator) namespaces() error {
	n := v.img.Namespaces
	for what, s := range map[string]string{"hostname": n.GetHostname(), "domainname": n.GetDomainname()} {
		if err := text(what, s, 64); err != nil { // __NEW_UTS_LEN
			return err
		}
	}
	for what, s := range map[string]string{
		"uid map": n.GetUidMap(), "gid map": n.GetGidMap(), "time offsets": n.GetTimeOffsets(),
	} {
		if err := text(what, s, 64<<10); err != nil {
			return err
		}
	}
	for _, m := range n.GetMounts() {
		if err := path(m.Mountpoint); err != nil {
			return in(err, "mount %d", m.Id)
		}
	}
	return v.tmpfs(n.GetTmpfs())
}

func (v *validator) tmpfs(list []*Tmpfs) error {
	at := map[string]bool{}
	for _, t := range list {
		if err := path(t.Mountpoint); err != nil {
			return in(err, "tmpfs")
		}
		if at[t.Mountpoint] {
			return bad("tmpfs %s: twice", t.Mountpoint)
		}
		at[t.Mountpoint] = true
		if t.Size > maxOffset {
			return bad("tmpfs %s: archive of %d bytes", t.Mountpoint, t.Size)
		}
		if t.Archive == "" && t.Size == 0 {
			continue
		}
		if err := v.fileName(t.Archive); err != nil {
			return in(err, "tmpfs %s", t.Mountpoint)
		}
	}
	return nil
}

func (v *validator) seccomp() error {
	const most = 4096 // BPF_MAXINSNS
	filters := v.img.Seccomp.GetFilters()
	if len(filters) > 1<<16 {
		return bad("%d seccomp filters", len(filters))
	}
	for i, f := range filters {
		if n := len(f.Program); n == 0 || n%8 != 0 || n > 8*most {
			return bad("seccomp filter %d: program of %d bytes", i, n)
		}
	}
	return nil
}
