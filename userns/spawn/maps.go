package spawn

import (
	"context"
	"errors"
	"fmt"

	"github.com/postern-net/postern/userns"
	"github.com/postern-net/postern/userns/subid"
)

// Mode says which ids the new user namespace shall have.
type Mode string

// The modes.
const (
	// Auto maps all subordinate ids if possible and else the user's own id only.
	Auto Mode = "auto"
	// Subid maps all subordinate ids or fails.
	Subid Mode = "subid"
	// Single maps the user's own id only, to root inside.
	Single Mode = "single"
)

// ErrMapping is wrapped by errors about ids that cannot be mapped as asked.
var ErrMapping = errors.New("cannot map subordinate ids")

// IDMaps is the plan for the id maps of a new user namespace, made by PlanMaps.
type IDMaps struct {
	UID, GID userns.Map
	// Single says that only our own id is mapped; setgroups(2) is denied then.
	Single bool
	// Notice is one line for the user when the plan is less than was hoped for:
	// cause and remedy. Empty: nothing to say.
	Notice string
	// Direct says that we write the maps ourselves, being privileged, instead of
	// having newuidmap and newgidmap do it.
	Direct bool
	// Fallback allows Start to take the single-id map when newuidmap or newgidmap
	// fails. The Process says what became of it.
	Fallback bool
	// NewUIDMap and NewGIDMap are the programs' paths; empty means through PATH.
	NewUIDMap, NewGIDMap string
}

// PlanMaps decides the id maps for the calling user. With Subid, what is in the
// way is an error that wraps ErrMapping; with Auto it is the plan's Notice.
func PlanMaps(ctx context.Context, mode Mode) (IDMaps, error) {
	return PlanMapsFrom(ctx, mode, subid.Auto)
}

// PlanMapsFrom is PlanMaps with a choice of where subordinate ids are looked up.
func PlanMapsFrom(ctx context.Context, mode Mode, from subid.Kind) (IDMaps, error) {
	switch mode {
	case Auto, Subid, Single:
	default:
		return IDMaps{}, fmt.Errorf("id map mode %q: want auto, subid or single", mode)
	}
	switch from {
	case "", subid.Auto, subid.Dynamic, subid.Static:
	default:
		return IDMaps{}, fmt.Errorf("source of subordinate ids %q: want auto, dynamic or static", from)
	}
	f, err := gather(ctx, mode, from)
	if err != nil {
		return IDMaps{}, fmt.Errorf("plan the id maps: %w", err)
	}
	return plan(mode, f)
}

// facts is all that the plan depends on.
type facts struct {
	uid, gid   uint32
	user       string
	from       subid.Kind
	ranges     subid.Ranges
	rangesErr  error
	noNewPrivs bool
	privileged bool       // root, or CAP_SETUID and CAP_SETGID
	outerUID   userns.Map // our own user namespace's maps
	outerGID   userns.Map
	uidTool    tool
	gidTool    tool
}

// tool is newuidmap or newgidmap as found on this machine.
type tool struct {
	name string
	path string // empty: not found
	weak bool   // neither setuid root nor with file capabilities
}

// plan is PlanMaps without the looking around.
func plan(mode Mode, f facts) (IDMaps, error) {
	single := IDMaps{UID: userns.SingleMap(f.uid), GID: userns.SingleMap(f.gid), Single: true}
	if mode == Single {
		return single, nil
	}
	if f.privileged && f.uid == 0 && (len(f.ranges.UID) == 0 || len(f.ranges.GID) == 0) {
		return IDMaps{UID: userns.IdentityMap(f.outerUID), GID: userns.IdentityMap(f.outerGID), Direct: true, Fallback: mode == Auto}, nil
	}
	full, err := planFull(f)
	if err == nil {
		full.Fallback = mode == Auto
		return full, nil
	}
	if mode == Subid {
		return IDMaps{}, fmt.Errorf("%w: %w", ErrMapping, err)
	}
	single.Notice = notice(err)
	return single, nil
}

// notice is the line for a plan that fell back.
func notice(cause error) string {
	return fmt.Sprintf("%v; continuing with your own id only (--map=single)", cause)
}

// planFull maps every subordinate range or says what is missing.
func planFull(f facts) (IDMaps, error) {
	if f.rangesErr != nil {
		return IDMaps{}, f.rangesErr
	}
	if err := missingRanges(f); err != nil {
		return IDMaps{}, err
	}
	m := IDMaps{Direct: f.privileged, NewUIDMap: f.uidTool.path, NewGIDMap: f.gidTool.path}
	if !m.Direct {
		if err := obstacle(f); err != nil {
			return IDMaps{}, err
		}
	}
	var err error
	if m.UID, err = userns.FullMap(f.uid, f.ranges.UID); err != nil {
		return IDMaps{}, fmt.Errorf("subordinate uids of %s: %w", f.user, err)
	}
	if m.GID, err = userns.FullMap(f.gid, f.ranges.GID); err != nil {
		return IDMaps{}, fmt.Errorf("subordinate gids of %s: %w", f.user, err)
	}
	return m, nil
}

// subordinateIDs is how many a user gets by custom (login.defs(5), SUB_UID_COUNT).
const subordinateIDs = 65536

// missingRanges names the file that has nothing for the user, and the remedy.
func missingRanges(f facts) error {
	for _, side := range []struct {
		file   string
		option string
		ranges []subid.Range
	}{{"/etc/subuid", "--add-subuids", f.ranges.UID}, {"/etc/subgid", "--add-subgids", f.ranges.GID}} {
		if len(side.ranges) == 0 && f.from == subid.Dynamic {
			return fmt.Errorf("no subordinate ids for %s from getsubids (the directory's counterpart of %s): ask for some there, or for /etc/subuid and /etc/subgid use --subid-source=static",
				f.user, side.file)
		}
		if len(side.ranges) == 0 {
			first := uint64(f.ranges.Free)
			return fmt.Errorf("no subordinate ids for %s in %s: ask for \"usermod %s %d-%d %s\"",
				f.user, side.file, side.option, first, first+subordinateIDs-1, f.user)
		}
	}
	return nil
}

// obstacle is what keeps an ordinary user's newuidmap from working.
func obstacle(f facts) error {
	for _, t := range []tool{f.uidTool, f.gidTool} {
		switch {
		case t.path == "":
			return fmt.Errorf("%s: not found: install the package uidmap (Debian, Ubuntu) or shadow-utils (Fedora)", t.name)
		case f.noNewPrivs:
			return fmt.Errorf("%s: no_new_privs is set, so setuid programs do not work: start without it", t.path)
		case t.weak:
			return fmt.Errorf("%s: neither setuid root nor with file capabilities: ask for \"chmod u+s %s\"", t.path, t.path)
		}
	}
	return nil
}
