package shim

import (
	"bytes"
	"fmt"
	"os"

	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/pelletier/go-toml/v2"
)

// tomlOptions is the runtime's options table in containerd's configuration. The
// keys are the ones that containerd accepts for io.containerd.runc.v2; under
// any other runtime name it hands the table over unread.
type tomlOptions struct {
	NoPivotRoot   bool
	NoNewKeyring  bool
	ShimCgroup    string
	IoUid         uint32
	IoGid         uint32
	BinaryName    string
	Root          string
	SystemdCgroup bool
	CriuImagePath string
	CriuWorkPath  string

	// Keys of the generic options message, which share the table.
	TypeUrl    string
	ConfigPath string
	// CriuPath has no meaning since containerd 2.0, but old files have it.
	CriuPath string
}

// DecodeOptions reads the options of a task. It accepts runc's own message and
// the generic one, and answers empty options for none. Errors wrap
// [errdefs.ErrInvalidArgument].
func DecodeOptions(a typeurl.Any) (*options.Options, error) {
	if a == nil || len(a.GetValue()) == 0 {
		return &options.Options{}, nil
	}
	v, err := typeurl.UnmarshalAny(a)
	if err != nil {
		return nil, fmt.Errorf("runtime options: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	switch o := v.(type) {
	case *options.Options:
		return o, nil
	case *runtimeoptions.Options:
		return fromGeneric(o)
	default:
		return nil, fmt.Errorf("runtime options of type %s: %w", a.GetTypeUrl(), errdefs.ErrInvalidArgument)
	}
}

// fromGeneric converts the options that containerd sends to a runtime it does
// not know by name. The file is read only without a body, as the message's
// documentation asks.
func fromGeneric(o *runtimeoptions.Options) (*options.Options, error) {
	body := o.GetConfigBody()
	if len(body) == 0 && o.GetConfigPath() != "" {
		b, err := os.ReadFile(o.GetConfigPath())
		if err != nil {
			return nil, fmt.Errorf("runtime options: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		body = b
	}
	return parseTOML(body)
}

// parseTOML refuses keys it doesn't know: a misspelt BinaryName must not run
// another runtime in silence.
func parseTOML(body []byte) (*options.Options, error) {
	var t tomlOptions
	d := toml.NewDecoder(bytes.NewReader(body)).DisallowUnknownFields()
	if err := d.Decode(&t); err != nil {
		return nil, fmt.Errorf("runtime options: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return &options.Options{
		NoPivotRoot:   t.NoPivotRoot,
		NoNewKeyring:  t.NoNewKeyring,
		ShimCgroup:    t.ShimCgroup,
		IoUid:         t.IoUid,
		IoGid:         t.IoGid,
		BinaryName:    t.BinaryName,
		Root:          t.Root,
		SystemdCgroup: t.SystemdCgroup,
		CriuImagePath: t.CriuImagePath,
		CriuWorkPath:  t.CriuWorkPath,
	}, nil
}
