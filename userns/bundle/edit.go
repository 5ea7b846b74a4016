package bundle

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/postern-net/postern/userns"
)

// apply makes a document say what the plan says. side is the path of SideDir.
func apply(doc *object, p Plan, side string) error {
	linux, err := doc.object("linux", true)
	if err != nil {
		return err
	}
	full, err := applyIDs(&linux, p)
	if err != nil {
		return err
	}
	if err := addNamespace(&linux, specs.NetworkNamespace); err != nil {
		return err
	}
	if err := applySysctl(&linux, p.GID); err != nil {
		return err
	}
	doc.setObject("linux", linux, true)
	steps := []func() error{
		func() error { return applyMounts(doc, side) },
		func() error { return applyHooks(doc, p.Hook) },
		func() error { return applyAnnotations(doc, p.Annotations) },
	}
	if full {
		steps = append(steps, func() error { return addCapabilities(doc) })
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// applyIDs sets the user namespace and its maps; full says that more than one id
// is mapped by us.
func applyIDs(linux *object, p Plan) (full bool, err error) {
	if p.UID == nil && p.GID == nil {
		return false, nil
	}
	namespaces, err := list[specs.LinuxNamespace](*linux, "namespaces")
	if err != nil {
		return false, err
	}
	for _, n := range namespaces {
		if n.Type == specs.UserNamespace && n.Path != "" {
			return false, nil // the maps of a namespace that exists are what they are
		}
	}
	old, err := list[specs.LinuxIDMapping](*linux, "uidMappings")
	if err != nil {
		return false, err
	}
	if p.KeepMaps && (len(old) > 1 || len(old) == 1 && old[0].Size > 1) {
		return false, nil
	}
	if err := addNamespace(linux, specs.UserNamespace); err != nil {
		return false, err
	}
	setList(linux, "uidMappings", mappings(p.UID), false)
	setList(linux, "gidMappings", mappings(p.GID), false)
	return p.UID.Max() > 0 && p.GID.Max() > 0, nil
}

func mappings(m userns.Map) []specs.LinuxIDMapping {
	out := make([]specs.LinuxIDMapping, 0, len(m))
	for _, r := range m {
		out = append(out, specs.LinuxIDMapping{ContainerID: r.Inside, HostID: r.Outside, Size: r.Count})
	}
	return out
}

// addNamespace adds a new namespace of a kind unless one is there.
func addNamespace(linux *object, kind specs.LinuxNamespaceType) error {
	raw, err := list[json.RawMessage](*linux, "namespaces")
	if err != nil {
		return err
	}
	all, err := list[specs.LinuxNamespace](*linux, "namespaces")
	if err != nil {
		return err
	}
	if slices.ContainsFunc(all, func(n specs.LinuxNamespace) bool { return n.Type == kind }) {
		return nil
	}
	setList(linux, "namespaces", append(raw, encode(specs.LinuxNamespace{Type: kind})), false)
	return nil
}

// Settings of a container's own network namespace.
const (
	sysctlPorts = "net.ipv4.ip_unprivileged_port_start"
	sysctlPing  = "net.ipv4.ping_group_range"
)

// applySysctl lets the container's ordinary users have ports below 1024 and ping
// (ip-sysctl.rst), as Docker does. The bounds of a range of groups must be mapped.
func applySysctl(linux *object, gids userns.Map) error {
	sysctl, err := linux.object("sysctl", false)
	if err != nil {
		return err
	}
	if sysctl.get(sysctlPorts) == nil {
		sysctl.set(sysctlPorts, encode("0"))
	}
	if highest, ok := highestGID(*linux, gids); ok && sysctl.get(sysctlPing) == nil {
		sysctl.set(sysctlPing, encode(fmt.Sprintf("0 %d", highest)))
	}
	linux.setObject("sysctl", sysctl, true)
	return nil
}

// highestGID is the last group of the maps that stand in the document now; false
// where group 0 has none.
func highestGID(linux object, planned userns.Map) (uint32, bool) {
	written, err := list[specs.LinuxIDMapping](linux, "gidMappings")
	if err != nil || len(written) == 0 {
		return 0, false // the host's ids, or those of a namespace that exists
	}
	m := make(userns.Map, 0, len(written))
	for _, w := range written {
		m = append(m, userns.Range{Inside: w.ContainerID, Outside: w.HostID, Count: w.Size})
	}
	if m.Validate() != nil {
		return 0, false
	}
	_, zero := m.ToOutside(0)
	// The kernel takes no group above this for a bound (ping_table, gid_t as int).
	return min(m.Max(), 1<<31-1), zero
}

// targets are the files that we mount, and what over.
var targets = []struct{ destination, file string }{
	{"/etc/resolv.conf", resolvFile},
	{"/etc/hosts", hostsFile},
}

// applyMounts mounts our files, each in the place of a mount that is there.
func applyMounts(doc *object, side string) error {
	raw, err := list[json.RawMessage](*doc, "mounts")
	if err != nil {
		return err
	}
	for _, t := range targets {
		mount := encode(specs.Mount{
			Destination: t.destination, Type: "bind", Source: filepath.Join(side, t.file),
			// Read-only, because all containers of the bundle share the file.
			Options: []string{"bind", "ro", "nosuid", "nodev", "noexec"},
		})
		i := slices.IndexFunc(raw, func(r json.RawMessage) bool { return destination(r) == t.destination })
		if i < 0 {
			raw = append(raw, mount)
			continue
		}
		raw[i] = mount
		raw = append(raw[:i+1], slices.DeleteFunc(raw[i+1:], func(r json.RawMessage) bool { return destination(r) == t.destination })...)
	}
	setList(doc, "mounts", raw, true)
	return nil
}

func destination(raw json.RawMessage) string {
	m, err := mount(raw)
	if err != nil || m.Destination == "" {
		return ""
	}
	return filepath.Join("/", m.Destination)
}

func mount(raw json.RawMessage) (m specs.Mount, err error) {
	err = json.Unmarshal(raw, &m)
	return m, err
}

// applyHooks puts our hook behind the others.
func applyHooks(doc *object, h Hook) error {
	hooks, err := doc.object("hooks", true)
	if err != nil {
		return err
	}
	for _, event := range hookEvents {
		raw, err := list[json.RawMessage](hooks, event)
		if err != nil {
			return fmt.Errorf("hooks: %w", err)
		}
		setList(&hooks, event, append(raw, encode(h.at(event))), false)
	}
	doc.setObject("hooks", hooks, true)
	return nil
}

// applyAnnotations removes every annotation of our prefix and sets the plan's.
func applyAnnotations(doc *object, ours map[string]string) error {
	annotations, err := doc.object("annotations", false)
	if err != nil {
		return err
	}
	had := doc.has("annotations")
	annotations = slices.DeleteFunc(annotations, isOurAnnotation)
	keys := make([]string, 0, len(ours))
	for k := range ours {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		annotations.set(k, encode(ours[k]))
	}
	doc.setObject("annotations", annotations, had)
	return nil
}

// isOurAnnotation goes by the prefix in any case, as get and set do.
func isOurAnnotation(m member) bool {
	return len(m.key) >= len(Prefix) && strings.EqualFold(m.key[:len(Prefix)], Prefix)
}

// idCapabilities are those without which mapped ids are of no use: an entrypoint
// that gives its data to another user and becomes that user (capabilities(7)). In
// a user namespace they reach no further than its ids.
var idCapabilities = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_SETGID", "CAP_SETUID"}

// capabilitySets get them; a process that is not root in there must not inherit
// them, so the inheritable and ambient sets do not.
var capabilitySets = []string{"bounding", "effective", "permitted"}

func addCapabilities(doc *object) error {
	return editCapabilities(doc, func(_ string, caps []string) []string {
		for _, c := range idCapabilities {
			if !slices.Contains(caps, c) {
				caps = append(caps, c)
			}
		}
		return caps
	})
}

// editCapabilities changes the lists of process.capabilities, where there are any:
// without them the runtime decides.
func editCapabilities(doc *object, change func(set string, caps []string) []string) error {
	process, err := doc.object("process", true)
	if err != nil || process.get("capabilities") == nil {
		return err
	}
	sets, err := process.object("capabilities", true)
	if err != nil {
		return fmt.Errorf("process: %w", err)
	}
	for _, set := range capabilitySets {
		caps, err := list[string](sets, set)
		if err != nil {
			return fmt.Errorf("process: capabilities: %w", err)
		}
		setList(&sets, set, change(set, caps), sets.has(set))
	}
	process.setObject("capabilities", sets, true)
	doc.setObject("process", process, true)
	return nil
}
