package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/images"
)

const pageSize = 4096

const inspectAbout = `The inspect command prints what is in a checkpoint: the host it was made on, its
processes, their open files and, with --maps, their mappings. It needs no
privilege, and everything it prints was checked as a restore would check it.`

// inspectCommand prints a checkpoint.
func (a *app) inspectCommand(_ *global) *command {
	var mappings, asJSON bool
	return &command{
		name: "inspect", summary: "print what is in a checkpoint",
		args: "<directory>", about: inspectAbout,
		options: []option{
			on(&mappings, "maps", "print the mappings of every process"),
			on(&asJSON, "json", "print the whole state as JSON"),
		},
		run: func(_ context.Context, args []string) (int, error) {
			if len(args) != 1 {
				return 0, fmt.Errorf("%q requires exactly 1 argument(s)", "inspect")
			}
			return 0, a.inspect(args[0], mappings, asJSON)
		},
	}
}

func (a *app) inspect(path string, mappings, asJSON bool) (err error) {
	d, err := images.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if asJSON {
		return inspectJSON(a.out, d.Image())
	}
	st, err := os.Stat(filepath.Join(path, blob.StateFile))
	if err != nil {
		return err
	}
	return inspectText(a.out, d.Image(), st.Size(), mappings)
}

// inspectText prints img for people. stateSize is the length of its state file
// in bytes.
func inspectText(out io.Writer, img *blob.Image, stateSize int64, mappings bool) error {
	v := newView(img)
	parts := []func(io.Writer){
		func(w io.Writer) { v.summary(w, stateSize) },
		v.tree,
		v.files,
	}
	if mappings {
		parts = append(parts, v.maps)
	}
	for i, part := range parts {
		if i > 0 {
			if _, err := io.WriteString(out, "\n"); err != nil {
				return err
			}
		}
		if err := page(out, part); err != nil {
			return err
		}
	}
	return nil
}

// view is an image with its ids resolved.
type view struct {
	img      *blob.Image
	filesBy  map[uint32]*blob.File
	tables   map[uint32]*blob.FDTable
	mms      map[uint32]*blob.MM
	children map[int32][]*blob.Process
}

func newView(img *blob.Image) *view {
	v := &view{
		img:      img,
		filesBy:  make(map[uint32]*blob.File, len(img.Files)),
		tables:   make(map[uint32]*blob.FDTable, len(img.FDTables)),
		mms:      make(map[uint32]*blob.MM, len(img.MMs)),
		children: make(map[int32][]*blob.Process),
	}
	for _, f := range img.Files {
		v.filesBy[f.GetId()] = f
	}
	for _, t := range img.FDTables {
		v.tables[t.GetId()] = t
	}
	for _, m := range img.MMs {
		v.mms[m.GetId()] = m
	}
	for _, p := range img.Processes {
		v.children[p.GetPpid()] = append(v.children[p.GetPpid()], p)
	}
	return v
}

// summary prints what is true of the checkpoint as a whole.
func (v *view) summary(w io.Writer, stateSize int64) {
	h, c := v.img.Host, v.img.Container
	made := time.Unix(0, h.GetCreatedNs()).UTC().Format(time.RFC3339)
	fmt.Fprintf(w, "container\t%s (%s)\n", printable(c.GetId()), printable(c.GetRuntime()))
	fmt.Fprintf(w, "made\t%s by stasis %s\n", made, printable(h.GetEngineVersion()))
	fmt.Fprintf(w, "host\t%s, kernel %s, cgroup v%d\n",
		printable(h.GetMachine()), printable(h.GetKernelRelease()), h.GetCgroupVersion())
	fmt.Fprintf(w, "options\t%s\n", policies(c))
	if name := v.img.Namespaces.GetHostname(); name != "" {
		fmt.Fprintf(w, "hostname\t%s\n", printable(name))
	}
	threads := 0
	for _, p := range v.img.Processes {
		threads += len(p.GetThreads())
	}
	fmt.Fprintf(w, "tasks\t%s, %s\n", count(len(v.img.Processes), "process"), count(threads, "thread"))
	v.sizes(w, stateSize)
}

// sizes prints what each part takes on disk.
func (v *view) sizes(w io.Writer, stateSize int64) {
	state, pages, tmpfs := uint64(max(stateSize, 0)), v.img.Pages.OwnSize(), uint64(0)
	for _, t := range v.img.Namespaces.GetTmpfs() {
		tmpfs += t.GetSize()
	}
	fmt.Fprintf(w, "size\t%s: state %s, pages %s in %s", size(state+pages+tmpfs), size(state),
		size(pages), count(len(v.img.Pages.GetChunks()), "chunk"))
	if n := len(v.img.Namespaces.GetTmpfs()); n > 0 {
		fmt.Fprintf(w, ", tmpfs %s in %s", size(tmpfs), count(n, "mount"))
	}
	fmt.Fprintln(w)
	v.packing(w)
	for _, p := range v.img.Pages.GetParents() {
		fmt.Fprintf(w, "needs\t%s (%x...)\n", printable(p.GetDir()), p.GetState()[:4])
	}
	for _, t := range v.img.Namespaces.GetTmpfs() {
		fmt.Fprintf(w, "tmpfs\t%s, %s\n", printable(t.GetMountpoint()), size(t.GetSize()))
	}
}

// packing prints what each codec made of the pages, and how many pages are needed
// for each that is stored.
func (v *view) packing(w io.Writer) {
	raw, stored := map[blob.Chunk_Codec]uint64{}, map[blob.Chunk_Codec]uint64{}
	var all uint64
	for _, c := range v.img.Pages.GetChunks() {
		if !v.img.Pages.Owns(c.GetStore()) {
			continue
		}
		raw[c.GetCodec()] += uint64(c.GetRaw())
		stored[c.GetCodec()] += uint64(c.GetStored())
		all += uint64(c.GetRaw())
	}
	if all == 0 {
		return
	}
	fmt.Fprintf(w, "pages\t%s stored as %s (%d %%)", size(all), size(v.img.Pages.OwnSize()), v.img.Pages.OwnSize()*100/all)
	for _, codec := range slices.Sorted(maps.Keys(raw)) {
		fmt.Fprintf(w, ", %s %s as %s", strings.ToLower(codec.String()), size(raw[codec]), size(stored[codec]))
	}
	if shared := v.needed() - min(all, v.needed()); shared > 0 {
		fmt.Fprintf(w, "; %s more are the same as others", size(shared))
	}
	fmt.Fprintln(w)
}

// needed is how many bytes of pages a restore puts back.
func (v *view) needed() (n uint64) {
	for _, m := range v.img.MMs {
		n += saved(m.GetExtents())
	}
	for _, c := range v.img.Contents {
		n += saved(c.GetExtents())
	}
	return n
}

// policies names what the checkpoint allowed.
func policies(c *blob.Container) string {
	var list []string
	for _, p := range []struct {
		name string
		on   bool
	}{
		{"leave-running", c.GetLeftRunning()},
		{"tcp-established", c.GetTcpEstablished()},
		{"file-locks", c.GetFileLocks()},
		{"ext-unix-sk", c.GetExtUnixSk()},
		{"shell-job", c.GetShellJob()},
		{"terminal", c.GetTerminal()},
	} {
		if p.on {
			list = append(list, p.name)
		}
	}
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

// tree prints the processes, children below their parents and further in.
func (v *view) tree(w io.Writer) {
	fmt.Fprintln(w, "PID\tPPID\tSTATE\tTHREADS\tUID\tMEMORY\tCOMMAND")
	v.walk(func(p *blob.Process, depth int) {
		fmt.Fprintf(w, "%d\t%d\t%s\t%d\t%d\t%s\t%s%s\n", p.GetPid(), p.GetPpid(), state(p), len(p.GetThreads()),
			uid(p), size(saved(v.mms[p.GetMm()].GetExtents())), strings.Repeat("  ", min(depth, 20)), title(p))
	})
}

// walk visits each process after its parent. It does not recurse: a chain of
// processes is as long as whoever wrote the image wanted.
func (v *view) walk(visit func(p *blob.Process, depth int)) {
	type step struct {
		p     *blob.Process
		depth int
	}
	var todo []step
	push := func(ppid int32, depth int) {
		list := v.children[ppid]
		for i := range list {
			todo = append(todo, step{list[len(list)-1-i], depth})
		}
	}
	push(0, 0)
	for len(todo) > 0 {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		visit(s.p, s.depth)
		push(s.p.GetPid(), s.depth+1)
	}
}

func state(p *blob.Process) string {
	switch p.GetState() {
	case blob.Process_STATE_STOPPED:
		return "stopped"
	case blob.Process_STATE_ZOMBIE:
		return "zombie"
	default:
		return "running"
	}
}

// uid is the effective user of the process's first thread.
func uid(p *blob.Process) uint32 {
	if t := p.GetThreads(); len(t) > 0 {
		return t[0].GetCreds().GetEuid()
	}
	return p.GetCreds().GetEuid()
}

// title is the command line, or the name if there is none.
func title(p *blob.Process) string {
	if len(p.GetArgs()) == 0 {
		return "[" + printable(string(p.GetComm())) + "]"
	}
	return printable(strings.Join(p.GetArgs(), " "))
}

// saved is how many bytes of pages extents hold.
func saved(extents []*blob.Extent) uint64 {
	var n uint64
	for _, e := range extents {
		n += uint64(e.GetPages()) * pageSize
	}
	return n
}

func count(n int, what string) string {
	switch {
	case n == 1:
		return "1 " + what
	case strings.HasSuffix(what, "s"):
		what += "e"
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// printable makes s safe for a terminal: an image is anybody's word.
func printable(s string) string {
	var b strings.Builder
	for _, r := range strings.ToValidUTF8(s, "\uFFFD") {
		if isPrint(r) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, "\\x%02x", r)
		}
	}
	return b.String()
}
