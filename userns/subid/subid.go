// Package subid finds the subordinate ids of a user: the ranges that the user may
// map into a user namespace besides his own id.
//
// The order is that of the shadow tools. Where /etc/nsswitch.conf names a source
// for "subid" (nsswitch.conf(5)), the getsubids program is asked, because only
// libsubid can load that source. Otherwise /etc/subuid and /etc/subgid are read
// (subuid(5)); lines count whose owner is the user's name or his uid in decimal.
// Where the files have nothing for the user, getsubids gets a last say, if it is
// installed.
//
// A line that does not parse is skipped and noted: one typing error of an
// administrator must not take every user's network away.
package subid

import (
	"context"

	"github.com/postern-net/postern/userns"
)

// Range is a run of ids that the user may map.
type Range = userns.Subrange

// Ranges is what a user owns. Either slice may be empty.
type Ranges struct {
	UID []Range
	GID []Range
	// Notes says which lines were skipped and why, one sentence each.
	Notes []string
	// Free is the lowest id, of both kinds, above every range of every user in the
	// files: where an administrator can add one that overlaps no other.
	Free uint32
}

// Kind says which of the places count.
type Kind string

// The kinds.
const (
	// Auto is the order above; it is also what "" means.
	Auto Kind = "auto"
	// Dynamic is getsubids alone, whatever nsswitch.conf says.
	Dynamic Kind = "dynamic"
	// Static is the files alone.
	Static Kind = "static"
)

// Source says where to look. The zero Source means the machine's real places.
type Source struct {
	Kind       Kind
	SubUIDFile string // default /etc/subuid
	SubGIDFile string // default /etc/subgid
	NSSwitch   string // default /etc/nsswitch.conf
	Getsubids  string // program; default "getsubids", found through PATH
}

// Lookup gives the ranges of the user. Not having any is no error: the slices are
// empty. An unreadable file and a getsubids that fails are errors only when
// nothing else could answer.
func Lookup(ctx context.Context, src Source, username string, uid uint32) (Ranges, error) {
	src = src.withDefaults()
	switch src.Kind {
	case Dynamic:
		return src.askTwice(ctx, username, uid)
	case Static:
		return src.read(username, uid)
	}
	if src.delegated() {
		return src.ask(ctx, username)
	}
	r, err := src.read(username, uid)
	if err == nil && len(r.UID) > 0 && len(r.GID) > 0 {
		return r, nil
	}
	asked, aerr := src.ask(ctx, username)
	if aerr != nil {
		// getsubids is optional where files are the source: what they say stands.
		return r, err
	}
	asked.Notes = append(r.Notes, asked.Notes...)
	asked.Free = r.Free
	if len(asked.UID) == 0 {
		asked.UID = r.UID
	}
	if len(asked.GID) == 0 {
		asked.GID = r.GID
	}
	return asked, nil
}

func (s Source) withDefaults() Source {
	set := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	set(&s.SubUIDFile, "/etc/subuid")
	set(&s.SubGIDFile, "/etc/subgid")
	set(&s.NSSwitch, "/etc/nsswitch.conf")
	set(&s.Getsubids, "getsubids")
	return s
}
