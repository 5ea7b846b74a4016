package bundle

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// revert takes what is ours out of a document and puts back what apply replaced in
// the original. What somebody has changed since stays.
func revert(doc *object, original object, side string) error {
	for _, step := range []func(*object, object) error{
		revertLinux, revertHooks, revertAnnotations, revertCapabilities,
		func(doc *object, original object) error { return revertMounts(doc, original, side) },
	} {
		if err := step(doc, original); err != nil {
			return err
		}
	}
	return nil
}

func revertLinux(doc *object, original object) error {
	linux, err := doc.object("linux", true)
	if err != nil {
		return err
	}
	before, err := original.object("linux", true)
	if err != nil {
		return err
	}
	for _, key := range []string{"uidMappings", "gidMappings"} {
		linux.set(key, before.get(key))
	}
	for _, kind := range []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.UserNamespace} {
		if err := dropNamespace(&linux, before, kind); err != nil {
			return err
		}
	}
	if err := revertSysctl(&linux, before); err != nil {
		return err
	}
	doc.setObject("linux", linux, original.has("linux"))
	return nil
}

// dropNamespace removes a new namespace of a kind that the original did not have.
func dropNamespace(linux *object, before object, kind specs.LinuxNamespaceType) error {
	had, err := list[specs.LinuxNamespace](before, "namespaces")
	if err != nil || slices.ContainsFunc(had, func(n specs.LinuxNamespace) bool { return n.Type == kind }) {
		return err
	}
	raw, err := list[json.RawMessage](*linux, "namespaces")
	if err != nil {
		return err
	}
	raw = slices.DeleteFunc(raw, func(r json.RawMessage) bool {
		var n specs.LinuxNamespace
		return json.Unmarshal(r, &n) == nil && n.Type == kind && n.Path == ""
	})
	setList(linux, "namespaces", raw, before.has("namespaces"))
	return nil
}

func revertSysctl(linux *object, before object) error {
	sysctl, err := linux.object("sysctl", false)
	if err != nil {
		return err
	}
	had, err := before.object("sysctl", false)
	if err != nil {
		return err
	}
	for _, key := range []string{sysctlPorts, sysctlPing} {
		sysctl.set(key, had.get(key))
	}
	linux.setObject("sysctl", sysctl, before.has("sysctl"))
	return nil
}

func revertHooks(doc *object, original object) error {
	hooks, err := doc.object("hooks", true)
	if err != nil {
		return err
	}
	before, err := original.object("hooks", true)
	if err != nil {
		return err
	}
	for _, event := range events {
		raw, err := list[json.RawMessage](hooks, event)
		if err != nil {
			return fmt.Errorf("hooks: %w", err)
		}
		if raw == nil {
			continue
		}
		raw = slices.DeleteFunc(raw, func(r json.RawMessage) bool {
			var h specs.Hook
			return json.Unmarshal(r, &h) == nil && isOurs(h)
		})
		setList(&hooks, event, raw, before.has(event))
	}
	doc.setObject("hooks", hooks, original.has("hooks"))
	return nil
}

func revertAnnotations(doc *object, original object) error {
	annotations, err := doc.object("annotations", false)
	if err != nil {
		return err
	}
	before, err := original.object("annotations", false)
	if err != nil {
		return err
	}
	annotations = slices.DeleteFunc(annotations, func(m member) bool { return isOurAnnotation(m) && !before.has(m.key) })
	for _, m := range before {
		if isOurAnnotation(m) {
			annotations.set(m.key, m.value)
		}
	}
	doc.setObject("annotations", annotations, original.has("annotations"))
	return nil
}

func revertCapabilities(doc *object, original object) error {
	before := make(map[string][]string)
	// The original is only looked at: its lists are left as they are.
	look := slices.Clone(original)
	err := editCapabilities(&look, func(set string, caps []string) []string {
		before[set] = slices.Clone(caps)
		return caps
	})
	if err != nil {
		return err
	}
	return editCapabilities(doc, func(set string, caps []string) []string {
		return slices.DeleteFunc(caps, func(c string) bool {
			return slices.Contains(idCapabilities, c) && !slices.Contains(before[set], c)
		})
	})
}

// revertMounts puts the original's mounts in the place of ours.
func revertMounts(doc *object, original object, side string) error {
	raw, err := list[json.RawMessage](*doc, "mounts")
	if err != nil {
		return err
	}
	before, err := list[json.RawMessage](original, "mounts")
	if err != nil {
		return err
	}
	var kept []json.RawMessage
	for _, r := range raw {
		if !isOurMount(r, side) {
			kept = append(kept, r)
			continue
		}
		at := destination(r)
		for _, b := range before {
			if destination(b) == at && !isOurMount(b, side) {
				kept = append(kept, b)
			}
		}
	}
	setList(doc, "mounts", kept, original.has("mounts"))
	return nil
}

// isOurMount reports whether a mount's source is in this bundle's SideDir, or in
// that of the bundle that this one is a copy of.
func isOurMount(raw json.RawMessage, side string) bool {
	m, err := mount(raw)
	if err != nil {
		return false
	}
	for _, t := range targets {
		dir, file := filepath.Split(filepath.Clean(m.Source))
		if destination(raw) == t.destination && file == t.file && (filepath.Clean(dir) == side || filepath.Base(dir) == SideDir) {
			return true
		}
	}
	return false
}
