package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stasis-cr/stasis/cr/blob/dir/dirtest"
)

func TestVerify(t *testing.T) {
	path := t.TempDir()
	dirtest.Write(t, path)
	f := newFake(t)
	if status := f.do(t, "verify", path); status != 0 || f.stderr.Len() > 0 ||
		f.stdout.String() != "c1 is whole: state, 2 chunks, 1 archive; 13.0 KiB of pages and files\n" {
		t.Errorf("status %d: %s%s", status, f.stdout.String(), f.stderr.String())
	}
	for _, name := range []string{dirtest.More, dirtest.Tmpfs} {
		b, err := os.ReadFile(filepath.Join(path, name))
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)-1] ^= 1
		if err := os.WriteFile(filepath.Join(path, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f = newFake(t)
	status := f.do(t, "verify", path)
	lines := strings.Split(strings.TrimSpace(f.stdout.String()), "\n")
	if status != 1 || f.stderr.Len() > 0 || len(lines) != 2 ||
		!strings.HasPrefix(lines[0], "chunk 1 at 0 of pages-2.img: checksum ") || !strings.HasSuffix(lines[0], "pages of pid 7 (1)") ||
		!strings.HasPrefix(lines[1], "tmpfs-1.tar: ") || !strings.HasSuffix(lines[1], "tmpfs /run") {
		t.Errorf("status %d: %s%s", status, f.stdout.String(), f.stderr.String())
	}
}
