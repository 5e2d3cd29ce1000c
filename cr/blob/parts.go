package blob

import "google.golang.org/protobuf/proto"

// part is one kind of section: which records of an image go there.
type part struct {
	tag  string // never reused
	rev  uint16 // of the message, raised with everything that is added to it
	many bool   // any number of them; else at most one
	// older refuses a record of an older revision that holds what only later ones
	// can; nil if there is none.
	older func(rev uint16, m proto.Message) error
	// records lists an image's, in order.
	records func(*Image) []proto.Message
	// add puts an empty record into an image and returns it.
	add func(*Image) proto.Message
}

// parts lists all kinds in the order of the file: what is named comes before
// what names it.
func parts() []part {
	return []part{
		single("HOST", 1, func(i *Image) **Host { return &i.Host }),
		single("CONT", 1, func(i *Image) **Container { return &i.Container }),
		single("NSPC", 1, func(i *Image) **Namespaces { return &i.Namespaces }),
		single("SECC", 1, func(i *Image) **Seccomp { return &i.Seccomp }),
		single("PAGE", 3, func(i *Image) **PageStore { return &i.Pages }).was(pagesWere),
		list("CNTS", 1, func(i *Image) *[]*Contents { return &i.Contents }),
		list("FILE", 1, func(i *Image) *[]*File { return &i.Files }),
		list("FDTB", 1, func(i *Image) *[]*FDTable { return &i.FDTables }),
		list("MEMM", 2, func(i *Image) *[]*MM { return &i.MMs }).was(mmsWere),
		list("PROC", 1, func(i *Image) *[]*Process { return &i.Processes }),
	}
}

// was gives p the check of its older revisions.
func (p part) was(older func(rev uint16, m proto.Message) error) part {
	p.older = older
	return p
}

// message is a pointer to a record.
type message[T any] interface {
	*T
	proto.Message
}

func single[T any, P message[T]](tag string, rev uint16, at func(*Image) *P) part {
	return part{
		tag: tag, rev: rev,
		records: func(i *Image) []proto.Message {
			if p := *at(i); p != nil {
				return []proto.Message{p}
			}
			return nil
		},
		add: func(i *Image) proto.Message {
			p := P(new(T))
			*at(i) = p
			return p
		},
	}
}

func list[T any, P message[T]](tag string, rev uint16, at func(*Image) *[]P) part {
	return part{
		tag: tag, rev: rev, many: true,
		records: func(i *Image) []proto.Message {
			out := make([]proto.Message, 0, len(*at(i)))
			for _, p := range *at(i) {
				out = append(out, p)
			}
			return out
		},
		add: func(i *Image) proto.Message {
			p := P(new(T))
			*at(i) = append(*at(i), p)
			return p
		},
	}
}
