package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/stasis-cr/stasis/cr/ociruntime"
	"github.com/stasis-cr/stasis/cr/pageserver"
	"github.com/stasis-cr/stasis/shim/migrate"
)

const migrateAbout = `The migrate command moves a running container of containerd to the containerd of
another machine, where "stasis migrate-server" takes it. Its image, its files and
its memory are sent while it runs; it stands still only for what it has written
last. If either side dies it runs on one of them, and on one only.`

const migrateServerAbout = `The migrate-server command takes containers that "stasis migrate" sends from
other machines, until it is ended by SIGTERM. It speaks TLS 1.3 only, with clients
that show a certificate which the CA has signed: they may run anything here.`

// Where containerd is if nobody says so, and the variables in which ctr looks.
const (
	containerdSocket    = "/run/containerd/containerd.sock"
	containerdNamespace = "default"
	socketEnv           = "CONTAINERD_ADDRESS"
	namespaceEnv        = "CONTAINERD_NAMESPACE"
)

func (a *app) migrateCommand(g *global) *command {
	o := &migrate.SourceConfig{}
	c := &command{
		name: "migrate", summary: "move a running container to another machine",
		args: "<container-id> <host:port>", about: migrateAbout,
	}
	c.options = append(a.containerdOptions(&o.Socket, &o.Namespace), keyOptions(&o.Keys)...)
	c.options = append(c.options,
		text(&o.Listen, "listen", "HOST:PORT where the other machine fetches memory (default: our address in its sight, any port)"),
		on(&o.Lazy, "lazy-pages", "let the container go on before all of its memory is there"),
		duration(&o.Downtime, "max-downtime", "send memory in rounds until it would stand still for less (default: 300ms)"),
		number(&o.Rounds, "rounds", "at most so many rounds (default: 10)"),
		choice(&o.Compress, "compress", "how to send memory: none, s2 (default) or zstd", "none", "s2", "zstd"),
		on(&o.Keep, "keep", "keep the container's record and files here; it has no task any more"),
		text(&o.Dir, "work-path", "directory for memory on its way (default: "+migrate.DefaultDir+")"),
	)
	c.run = func(_ context.Context, args []string) (int, error) {
		if len(args) != 2 {
			return 0, fmt.Errorf("%q requires exactly 2 argument(s)", c.name)
		}
		if _, _, err := net.SplitHostPort(args[1]); err != nil {
			return 0, fmt.Errorf("%s: want HOST:PORT of a migrate-server: %w", args[1], err)
		}
		o.ID, o.To, o.Debug = args[0], args[1], g.debug
		if err := errors.Join(absKeys(&o.Keys), absDir(&o.Dir)); err != nil {
			return 0, err
		}
		return 1, a.runMigrate(migrate.SourceVerb, o)
	}
	return c
}

func (a *app) migrateServerCommand(g *global) *command {
	o := &migrate.ListenConfig{}
	c := &command{name: "migrate-server", summary: "take containers from other machines", about: migrateServerAbout}
	c.options = append(a.containerdOptions(&o.Socket, &o.Namespace), keyOptions(&o.Keys)...)
	c.options = append(c.options,
		text(&o.Listen, "listen", "HOST:PORT to listen on; with port 0 a free one is printed"),
		text(&o.Runtime, "runtime-name", "containerd's name of the runtime (default: io.containerd.stasis.v1)"),
		text(&o.Snapshotter, "snapshotter", "for the container's files (default: that of the other machine)"),
		text(&o.LogDir, "log-path", "directory for what containers print, as ID.log (default: it is dropped)"),
		text(&o.Dir, "work-path", "directory for memory on its way (default: "+migrate.DefaultDir+")"),
	)
	c.run = func(_ context.Context, args []string) (int, error) {
		if len(args) != 0 {
			return 0, fmt.Errorf("%q takes no arguments", c.name)
		}
		if o.Listen == "" {
			return 0, errors.New("--listen is missing")
		}
		o.Debug = g.debug
		if err := errors.Join(absKeys(&o.Keys), absDir(&o.Dir)); err != nil {
			return 0, err
		}
		if o.LogDir != "" {
			if err := absDir(&o.LogDir); err != nil {
				return 0, err
			}
		}
		return 1, a.runMigrate(migrate.ListenVerb, o)
	}
	return c
}

// containerdOptions are ctr's global flags.
func (a *app) containerdOptions(socket, namespace *string) []option {
	*socket, *namespace = containerdSocket, containerdNamespace
	for _, e := range []struct {
		name string
		to   *string
	}{{socketEnv, socket}, {namespaceEnv, namespace}} {
		if v := a.getenv(e.name); v != "" {
			*e.to = v
		}
	}
	return []option{
		with("a", text(socket, "address", "containerd's socket (default: "+containerdSocket+", or "+socketEnv+")")),
		with("n", text(namespace, "namespace", "containerd's namespace (default: "+containerdNamespace+", or "+namespaceEnv+")")),
	}
}

func keyOptions(k *pageserver.Keys) []option {
	return []option{
		text(&k.Cert, "tls-cert", "our certificate, a PEM file"),
		text(&k.Key, "tls-key", "the certificate's key, a PEM file"),
		text(&k.CA, "tls-ca", "the CA that signs the other side's certificate, a PEM file"),
	}
}

// absKeys says what is missing and makes paths absolute: who uses them runs
// elsewhere.
func absKeys(k *pageserver.Keys) (all error) {
	for _, f := range []struct {
		name string
		path *string
	}{{"tls-cert", &k.Cert}, {"tls-key", &k.Key}, {"tls-ca", &k.CA}} {
		if *f.path == "" {
			all = errors.Join(all, fmt.Errorf("--%s is missing: nobody is spoken to without", f.name))
			continue
		}
		path, err := filepath.Abs(*f.path)
		*f.path, all = path, errors.Join(all, err)
	}
	return all
}

func absDir(p *string) (err error) {
	if *p == "" {
		*p = migrate.DefaultDir
	}
	*p, err = filepath.Abs(*p)
	return err
}

// duration is an option that takes a time span of more than 0.
func duration(p *time.Duration, name, usage string) option {
	return option{name: name, usage: usage, takes: true, set: func(v string) (err error) {
		if *p, err = time.ParseDuration(v); err == nil && *p <= 0 {
			err = errors.New("it must be more than 0")
		}
		if err != nil {
			return fmt.Errorf("invalid --%s: %w", name, err)
		}
		return nil
	}}
}

// number is an option that takes a number of at least 1.
func number(p *int, name, usage string) option {
	return option{name: name, usage: usage, takes: true, set: func(v string) (err error) {
		if *p, err = strconv.Atoi(v); err != nil || *p < 1 {
			return fmt.Errorf("invalid --%s %q: want a number of at least 1", name, v)
		}
		return nil
	}}
}

// runMigrate becomes the program that has the connection with containerd. The one
// beside this program comes first, so that both are of one version, then PATH. It
// returns only if that fails.
func (a *app) runMigrate(verb string, config any) error {
	b, err := json.Marshal(config)
	if err != nil {
		return err
	}
	path, err := a.findMigrate()
	if err != nil {
		return err
	}
	if err := a.exec(path, []string{migrate.Command, verb, string(b)}, a.env); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func (a *app) findMigrate() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	beside := filepath.Join(filepath.Dir(self), migrate.Command)
	for _, path := range append([]string{beside}, ociruntime.InPath(migrate.Command, a.getenv)...) {
		if ociruntime.Usable(path) == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is neither in %s nor in PATH: install it beside stasis", migrate.Command, filepath.Dir(self))
}
