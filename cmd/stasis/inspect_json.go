package main

import (
	"encoding/json"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/stasis-cr/stasis/cr/blob"
)

// imageJSON is a whole image: the messages of cr/blob under their own names,
// with the bodies of files decoded where this engine knows their kind.
type imageJSON struct {
	Host       json.RawMessage   `json:"host,omitempty"`
	Container  json.RawMessage   `json:"container,omitempty"`
	Namespaces json.RawMessage   `json:"namespaces,omitempty"`
	Seccomp    json.RawMessage   `json:"seccomp,omitempty"`
	Processes  []json.RawMessage `json:"processes"`
	FDTables   []json.RawMessage `json:"fd_tables"`
	Files      []json.RawMessage `json:"files"`
	MMs        []json.RawMessage `json:"mms"`
	Contents   []json.RawMessage `json:"contents"`
	Pages      json.RawMessage   `json:"pages,omitempty"`
}

// inspectJSON prints img as one JSON object.
func inspectJSON(out io.Writer, img *blob.Image) error {
	j := &jsonPrinter{}
	v := imageJSON{
		Host:       one(j, img.Host),
		Container:  one(j, img.Container),
		Namespaces: one(j, img.Namespaces),
		Seccomp:    one(j, img.Seccomp),
		Processes:  each(j, img.Processes),
		FDTables:   each(j, img.FDTables),
		Files:      j.files(img.Files),
		MMs:        each(j, img.MMs),
		Contents:   each(j, img.Contents),
		Pages:      one(j, img.Pages),
	}
	if j.err != nil {
		return j.err
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// jsonPrinter keeps the first error.
type jsonPrinter struct{ err error }

func (j *jsonPrinter) message(m proto.Message) json.RawMessage {
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil && j.err == nil {
		j.err = fmt.Errorf("%s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return b
}

// one prints a message that may be absent.
func one[M interface {
	comparable
	proto.Message
}](j *jsonPrinter, m M) json.RawMessage {
	var none M
	if m == none {
		return nil
	}
	return j.message(m)
}

func each[M proto.Message](j *jsonPrinter, list []M) []json.RawMessage {
	out := make([]json.RawMessage, 0, len(list))
	for _, m := range list {
		out = append(out, j.message(m))
	}
	return out
}

// files prints files with their bodies in clear.
func (j *jsonPrinter) files(list []*blob.File) []json.RawMessage {
	kinds := bodies()
	out := each(j, list)
	for i, f := range list {
		body := decode(kinds, f)
		if body == nil || j.err != nil {
			continue
		}
		fields := map[string]json.RawMessage{}
		if j.err = json.Unmarshal(out[i], &fields); j.err != nil {
			continue
		}
		fields["body"] = j.message(body)
		out[i], j.err = json.Marshal(fields)
	}
	return out
}
