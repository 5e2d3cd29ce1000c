package box

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Programs are the files that every box holds.
type Programs struct {
	Go    string // cmd of integration/progs
	C     string // integration/progs/c, in one static binary
	Shell string // a static busybox; empty: none, which Build leaves it at
}

// Build compiles the programs into dir. source is the folder integration/progs.
// It needs the go command and a C compiler with a static C library.
func Build(ctx context.Context, source, dir string) (Programs, error) {
	p := Programs{Go: filepath.Join(dir, "progs"), C: filepath.Join(dir, "cprogs")}
	if err := GoBuild(ctx, source, p.Go); err != nil {
		return p, err
	}
	files, err := filepath.Glob(filepath.Join(source, "c", "*.c"))
	if err != nil {
		return p, err
	}
	args := append([]string{"-static", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", p.C}, files...)
	return p, command(exec.CommandContext(ctx, "gcc", args...))
}

// GoBuild compiles the command in folder source into file out, without cgo.
func GoBuild(ctx context.Context, source, out string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", out, ".")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	return command(cmd)
}

// command runs cmd; its error holds what cmd printed.
func command(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, brief(string(out)))
	}
	return nil
}

// brief keeps what matters of a runtime's output: the errors if it marks any, and
// no more than a few lines.
func brief(out string) string {
	const most = 2000
	var errs []string
	for line := range strings.Lines(out) {
		if strings.Contains(line, "level=error") {
			errs = append(errs, strings.TrimSpace(line))
		}
	}
	if errs != nil {
		out = strings.Join(errs, "\n")
	}
	out = strings.TrimSpace(out)
	return out[max(0, len(out)-most):]
}

// copyFile copies a program; the copy is executable by everybody.
func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}
