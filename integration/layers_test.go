package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/stasis-cr/stasis/"

// layers names, for each package, the packages of this module that it may
// import. Arrows go down only, and neighbours don't know each other: cr/object,
// cr/mem, cr/task and namespaces meet in cr. A package that is not here fails.
var layers = map[string][]string{
	"cmd/stasis": {
		"cr", "cr/blob", "cr/blob/dir", "cr/errs", "cr/lazy", "cr/object", "cr/ociruntime", "cr/pageserver", "images", "shim/migrate",
	},
	"cmd/stasis-migrate":            {"cr", "cr/errs", "shim/daemon", "shim/migrate"},
	"cmd/containerd-shim-stasis-v1": {"plugin", "shim"},
	"plugin":                        {"shim"},
	"shim":                          {"cr", "cr/errs", "images", "namespaces"},
	"shim/migrate":                  {"cr", "cr/blob/dir", "cr/fault", "cr/pageserver"},
	"shim/daemon":                   {"cr", "cr/errs", "cr/ociruntime", "shim"},
	"images":                        {"cr", "cr/blob", "cr/blob/dir", "cr/errs"},

	"cr": {
		"cr/blob", "cr/blob/dir", "cr/errs", "cr/fault", "cr/lazy", "cr/mem", "cr/object", "cr/pageserver",
		"cr/procfs", "cr/remote", "cr/sys", "cr/task", "cr/tracer", "cr/undo", "namespaces",
	},
	"cr/lazy":       {"cr/blob", "cr/errs", "cr/fault", "cr/mem", "cr/pageserver", "cr/procfs", "cr/sys", "cr/undo"},
	"cr/pageserver": {"cr/blob", "cr/blob/dir", "cr/errs", "cr/fault", "cr/mem"},
	"cr/object":     {"cr/blob", "cr/errs", "cr/fault", "cr/procfs", "cr/remote", "cr/sys", "cr/undo"},
	"cr/mem":        {"cr/blob", "cr/errs", "cr/fault", "cr/procfs", "cr/remote", "cr/sys", "cr/undo"},
	"cr/task":       {"cr/blob", "cr/errs", "cr/fault", "cr/procfs", "cr/remote", "cr/sys", "cr/tracer", "cr/undo"},
	"namespaces":    {"cr/blob", "cr/errs", "cr/fault", "cr/procfs", "cr/remote", "cr/sys", "cr/undo"},
	"cr/remote":     {"cr/errs", "cr/fault", "cr/procfs", "cr/sys", "cr/tracer", "cr/undo"},
	"cr/tracer":     {"cr/errs", "cr/fault", "cr/sys", "cr/undo"},

	"cr/blob":                {"cr/errs"},
	"cr/blob/dir":            {"cr/blob", "cr/errs", "cr/fault", "cr/undo"},
	"cr/blob/dir/dirtest":    {"cr/blob", "cr/blob/dir"},
	"cr/pageserver/pagetest": {"cr/pageserver"},
	"cr/procfs":              {"cr/errs"},
	"cr/ociruntime":          {},
	"cr/sys":                 {},
	"cr/errs":                {},
	"cr/fault":               {},
	"cr/undo":                {},

	"integration":           {},
	"integration/bench":     {"integration/harness", "integration/progs/box"},
	"integration/demo":      {"integration/harness"},
	"integration/harness":   {},
	"integration/progs":     {},
	"integration/progs/box": {},
}

// knowsContainerd are the packages that may import containerd's, with all that
// hangs from it: the engine must not.
var knowsContainerd = []string{"shim", "shim/daemon", "plugin", "cmd/containerd-shim-stasis-v1", "cmd/stasis-migrate"}

// goPackage is what is read of `go list -json`.
type goPackage struct {
	ImportPath, Dir, Doc string
	GoFiles, Imports     []string
}

func (p *goPackage) name() string { return strings.TrimPrefix(p.ImportPath, module) }

func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Dir,Doc,GoFiles,Imports", "../...")
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, complaint.Bytes())
	}
	var all []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func TestLayers(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range packages(t) {
		from := p.name()
		seen[from] = true
		may, known := layers[from]
		if !known {
			t.Errorf("%s is in no layer: add it to the table", from)
		}
		for _, imp := range p.Imports {
			if to, ours := strings.CutPrefix(imp, module); ours && !slices.Contains(may, to) {
				t.Errorf("%s must not import %s", from, to)
			}
			containerds := strings.HasPrefix(imp, "github.com/containerd/")
			if containerds && !slices.Contains(knowsContainerd, from) && !strings.HasPrefix(from, "integration") {
				t.Errorf("%s must not import %s: containerd stays in %v", from, imp, knowsContainerd)
			}
		}
		if p.Doc == "" && len(p.GoFiles) > 0 {
			t.Errorf("%s has no package comment", from)
		}
	}
	for from := range layers {
		if !seen[from] {
			t.Errorf("%s is in the table and not in the tree", from)
		}
	}
}

// TestTableHasNoCycle follows the arrows of the table itself.
func TestTableHasNoCycle(t *testing.T) {
	var visit func(p string, way []string)
	visit = func(p string, way []string) {
		if slices.Contains(way, p) {
			t.Fatalf("the layers go round: %s", strings.Join(append(way, p), " -> "))
		}
		for _, to := range layers[p] {
			if _, known := layers[to]; !known {
				t.Fatalf("%s may import %s, which is in no layer", p, to)
			}
			visit(to, append(slices.Clone(way), p))
		}
	}
	for p := range layers {
		visit(p, nil)
	}
}

// TestRawCalls keeps unsafe in files that say so in their name, and raw system
// calls in cr/sys. The programs of the tests are free.
func TestRawCalls(t *testing.T) {
	for _, p := range packages(t) {
		if strings.HasPrefix(p.name(), "integration") {
			continue
		}
		for _, name := range p.GoFiles {
			if strings.HasSuffix(name, ".pb.go") {
				continue
			}
			path := filepath.Join(p.Dir, name)
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Error(err)
				continue
			}
			checkRaw(t, p.name(), fset, f)
		}
	}
}

func checkRaw(t *testing.T, pkg string, fset *token.FileSet, f *ast.File) {
	t.Helper()
	at := func(n ast.Node) token.Position { return fset.Position(n.Pos()) }
	for _, imp := range f.Imports {
		if imp.Path.Value == `"unsafe"` && !strings.HasSuffix(at(imp).Filename, "_unsafe.go") {
			t.Errorf("%s: unsafe belongs into a file named *_unsafe.go", at(imp))
		}
	}
	if pkg == "cr/sys" {
		return
	}
	raw := []string{"Syscall", "Syscall6", "RawSyscall", "RawSyscall6", "SyscallNoError", "RawSyscallNoError"}
	ast.Inspect(f, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if from, ok := sel.X.(*ast.Ident); ok && (from.Name == "unix" || from.Name == "syscall") && slices.Contains(raw, sel.Sel.Name) {
			t.Errorf("%s: %s.%s belongs into cr/sys", at(sel), from.Name, sel.Sel.Name)
		}
		return true
	})
}

// TestReadersBuildAnywhere: to look into a checkpoint needs no Linux.
func TestReadersBuildAnywhere(t *testing.T) {
	if testing.Short() {
		t.Skip("builds for other systems")
	}
	for _, target := range []string{"darwin/arm64", "windows/amd64"} {
		t.Run(target, func(t *testing.T) {
			goos, goarch, _ := strings.Cut(target, "/")
			cmd := exec.CommandContext(t.Context(), "go", "build", "../cr/blob/...", "../cr/procfs")
			cmd.Env = append(cmd.Environ(), "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
