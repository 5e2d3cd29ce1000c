package harness

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Base returns the directories and accounts that every image of ours has.
func Base() []File {
	dir := func(p string, m os.FileMode) File { return File{Path: p, Mode: os.ModeDir | m} }
	return []File{
		dir("/dev", 0o755), dir("/proc", 0o755), dir("/sys", 0o755), dir("/run", 0o755), dir("/root", 0o700),
		{Path: "/tmp", Mode: os.ModeDir | os.ModeSticky | 0o777},
		{Path: "/etc/passwd", Mode: 0o644, Body: []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n")},
		{Path: "/etc/group", Mode: 0o644, Body: []byte("root:x:0:\nuser:x:1000:\n")},
	}
}

// Busybox returns the host's busybox, which must be static, as /bin/busybox
// with a link in /bin for every applet.
func Busybox(ctx context.Context) ([]File, error) {
	bin, err := Tool("busybox")
	if err != nil {
		return nil, err
	}
	list, err := Run(ctx, os.Environ(), bin, "--list")
	if err != nil {
		return nil, err
	}
	files := []File{{Path: "/bin/busybox", Mode: 0o755, Source: bin}}
	for applet := range strings.FieldsSeq(list) {
		if applet != "busybox" {
			files = append(files, File{Path: "/bin/" + applet, Mode: 0o777, Link: "busybox"})
		}
	}
	return files, nil
}

// libLine matches a line of ldd that names a file: "x => /path (0x...)", or
// "/path (0x...)" for the loader.
var libLine = regexp.MustCompile(`(?m)^\s*(?:\S+ => )?(/\S+) \(0x`)

// Program returns a dynamic program of the host, at the same path, with the
// libraries that it loads at start.
func Program(ctx context.Context, bin string) ([]File, error) {
	files := []File{hostFile(bin)}
	libs, err := libraries(ctx, bin)
	return append(files, libs...), err
}

// libraries returns what ldd says that a program or module loads: nothing, for
// a module that leaves it to its program.
func libraries(ctx context.Context, bin string) ([]File, error) {
	out, err := Run(ctx, append(os.Environ(), "LC_ALL=C"), "ldd", bin)
	if err != nil {
		return nil, err
	}
	var files []File
	for _, m := range libLine.FindAllStringSubmatch(out, -1) {
		files = append(files, hostFile(m[1]))
	}
	return files, nil
}

// hostFile is a file of the host at its own path, links followed.
func hostFile(p string) File { return File{Path: p, Mode: 0o755, Source: p} }

// pythonUnneeded are parts of Python's library that no test uses.
var pythonUnneeded = []string{"__pycache__", "test", "idlelib", "lib2to3", "ensurepip", "pydoc_data", "dist-packages"}

// Python returns the host's Python 3 with its standard library.
func Python(ctx context.Context) ([]File, error) {
	const bin = "/usr/bin/python3"
	files, err := Program(ctx, bin)
	if err != nil {
		return nil, err
	}
	lib, err := Run(ctx, os.Environ(), bin, "-c", "import os; print(os.path.dirname(os.__file__))")
	if err != nil {
		return nil, err
	}
	tree, err := Tree(strings.TrimSpace(lib), pythonUnneeded)
	if err != nil {
		return nil, err
	}
	for _, f := range tree {
		if filepath.Ext(f.Path) != ".so" {
			continue
		}
		libs, err := libraries(ctx, f.Source)
		if err != nil {
			return nil, err
		}
		files = append(files, libs...)
	}
	return append(files, tree...), nil
}

// Tree returns the regular files of the host below dir, without the entries
// that are named in skip.
func Tree(dir string, skip []string) ([]File, error) {
	unwanted := map[string]bool{}
	for _, s := range skip {
		unwanted[s] = true
	}
	var files []File
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case unwanted[d.Name()] && d.IsDir():
			return fs.SkipDir
		case d.Type().IsRegular():
			files = append(files, hostFile(p))
		}
		return nil
	})
	return files, err
}
