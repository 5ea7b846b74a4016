package subid

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	text := strings.Join([]string{
		"# a comment:1:1",
		"",
		"alice:100000:65536",
		"bob:165536:65536",
		"1000:300000:10",
		"10000:400000:10", // another uid that only starts alike
		"alice:500000",
		"alice:500000:0",
		"alice:-5:10",
		"alice:4294967295:1",
		"alice:4294967294:1",
		"alice:4294967290:10",
		"alice:99999999999:10",
		"alice:0x10:10",
		"alice:1:2:3",
		"  alice:600000:5  ",
		":7:7",
		"alice",
	}, "\n")
	ranges, notes := Parse([]byte(text), "alice", 1000)
	want := []Range{{Start: 100000, Count: 65536}, {Start: 300000, Count: 10}, {Start: 4294967294, Count: 1}, {Start: 600000, Count: 5}}
	if diff := cmp.Diff(want, ranges); diff != "" {
		t.Error(diff)
	}
	if len(notes) != 8 || !strings.HasPrefix(notes[0], "line 7 skipped: ") {
		t.Errorf("notes %q", notes)
	}
	if ranges, notes := Parse([]byte(text), "", 4); len(ranges) != 0 || len(notes) != 0 {
		t.Errorf("a user without a name got %v, %q", ranges, notes)
	}
}

func TestParseIsBounded(t *testing.T) {
	ranges, notes := Parse([]byte(strings.Repeat("alice:1:1\n", maxRanges+2)), "alice", 1000)
	if len(ranges) != maxRanges || len(notes) != 2 {
		t.Errorf("%d ranges, %d notes", len(ranges), len(notes))
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("alice:100000:65536\n1000:1:1\nalice::\n:::\n#"))
	f.Fuzz(func(t *testing.T, text []byte) {
		ranges, _ := Parse(text, "alice", 1000)
		for _, r := range ranges {
			if r.Count == 0 || uint64(r.Start)+uint64(r.Count) > 1<<32-1 {
				t.Fatalf("range %+v", r)
			}
		}
	})
}

// place writes the files of a fake machine and returns the Source for it. A
// getsubids script of "" is none.
func place(t *testing.T, files map[string]string) Source {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return Source{
		SubUIDFile: filepath.Join(dir, "subuid"), SubGIDFile: filepath.Join(dir, "subgid"),
		NSSwitch: filepath.Join(dir, "nsswitch.conf"), Getsubids: filepath.Join(dir, "getsubids"),
	}
}

// fromDirectory is a getsubids that knows alice.
const fromDirectory = `#!/bin/sh
case "$*" in
"alice") echo "0: alice 700000 1000"; echo "1: alice 800000 2000" ;;
"-g alice") echo "0: alice 900000 3000" ;;
*) echo "Error fetching ranges" >&2; exit 1 ;;
esac
`

func TestLookup(t *testing.T) {
	fileUID := []Range{{Start: 100000, Count: 65536}}
	fileGID := []Range{{Start: 200000, Count: 65536}}
	nssUID := []Range{{Start: 700000, Count: 1000}, {Start: 800000, Count: 2000}}
	nssGID := []Range{{Start: 900000, Count: 3000}}
	both := map[string]string{"subuid": "alice:100000:65536\n", "subgid": "1000:200000:65536\n", "getsubids": fromDirectory}
	with := func(change map[string]string) map[string]string {
		files := map[string]string{}
		for k, v := range both {
			files[k] = v
		}
		for k, v := range change {
			files[k] = v
			if v == "-" {
				delete(files, k)
			}
		}
		return files
	}
	for _, tc := range []struct {
		name     string
		files    map[string]string
		user     string
		uid, gid []Range
	}{
		{"files", both, "alice", fileUID, fileGID},
		{"nsswitch names the directory", with(map[string]string{"nsswitch.conf": "passwd: files\nsubid: sss # comment\n"}), "alice", nssUID, nssGID},
		{"nsswitch names the files", with(map[string]string{"nsswitch.conf": "subid: files\n"}), "alice", fileUID, fileGID},
		{"nsswitch has a comment", with(map[string]string{"nsswitch.conf": "#subid: sss\n"}), "alice", fileUID, fileGID},
		{"files have nothing", with(map[string]string{"subuid": "-", "subgid": "-"}), "alice", nssUID, nssGID},
		{"files have half", with(map[string]string{"subgid": "-"}), "alice", nssUID, nssGID},
		{"nobody has anything", with(map[string]string{"subuid": "", "subgid": ""}), "carol", nil, nil},
		{"no getsubids", with(map[string]string{"subgid": "-", "getsubids": "-"}), "alice", fileUID, nil},
		{"getsubids fails", with(map[string]string{"subgid": "-", "getsubids": "#!/bin/sh\nexit 2\n"}), "alice", fileUID, nil},
		{"getsubids talks nonsense", with(map[string]string{"subgid": "-", "getsubids": "#!/bin/sh\necho nonsense\n"}), "alice", fileUID, nil},
	} {
		got, err := Lookup(context.Background(), place(t, tc.files), tc.user, 1000)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		if diff := cmp.Diff(tc.uid, got.UID); diff != "" {
			t.Errorf("%s: uids\n%s", tc.name, diff)
		}
		if diff := cmp.Diff(tc.gid, got.GID); diff != "" {
			t.Errorf("%s: gids\n%s", tc.name, diff)
		}
	}
}

func TestLookupFailures(t *testing.T) {
	delegated := "subid: sss\n"
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"directory without getsubids", map[string]string{"nsswitch.conf": delegated}, "getsubids"},
		{"directory with a failing getsubids", map[string]string{"nsswitch.conf": delegated, "getsubids": "#!/bin/sh\nexit 3\n"}, "exit status 3"},
		{"nonsense", map[string]string{"nsswitch.conf": delegated, "getsubids": "#!/bin/sh\necho 0: alice 1\n"}, "0: alice 1"},
		{"overflow", map[string]string{"nsswitch.conf": delegated, "getsubids": "#!/bin/sh\necho 0: alice 4294967295 2\n"}, "past the last id"},
	} {
		_, err := Lookup(context.Background(), place(t, tc.files), "alice", 1000)
		if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	src := place(t, nil)
	src.SubUIDFile = t.TempDir() // a directory cannot be read
	if _, err := Lookup(context.Background(), src, "alice", 1000); err == nil {
		t.Error("unreadable file: no error")
	}
}

func TestSkippedLinesAreNoted(t *testing.T) {
	src := place(t, map[string]string{"subuid": "alice:x:1\nalice:5:5\n", "subgid": "alice:5:5\n"})
	got, err := Lookup(context.Background(), src, "alice", 1000)
	if err != nil || len(got.Notes) != 1 || !strings.Contains(got.Notes[0], "subuid line 1 skipped") {
		t.Errorf("notes %q, %v", got.Notes, err)
	}
}

// A remedy that is followed must not give two users the same ids.
func TestFreeIsAboveEveryRange(t *testing.T) {
	for _, tc := range []struct {
		name, subuid, subgid string
		want                 uint32
	}{
		{"no files", "-", "-", 100000},
		{"others in both", "alice:100000:65536\nbob:165536:65536\n", "alice:300000:65536\n", 365536},
		{"below the first id", "alice:500:100\n", "-", 100000},
		{"nonsense and comments", "# x\nalice:1\nbob:-1:5\n", "bob:200000:65536\n", 265536},
	} {
		files := map[string]string{"subuid": tc.subuid, "subgid": tc.subgid}
		for name, text := range files {
			if text == "-" {
				delete(files, name)
			}
		}
		got, err := Lookup(context.Background(), place(t, files), "carol", 1000)
		if err != nil || got.Free != tc.want {
			t.Errorf("%s: free from %d, %v; want %d", tc.name, got.Free, err, tc.want)
		}
	}
}

// TestLookupKinds: a source that was named is the only one.
func TestLookupKinds(t *testing.T) {
	inFiles := []Range{{Start: 100000, Count: 65536}}
	byName := []Range{{Start: 700000, Count: 1000}, {Start: 800000, Count: 2000}}
	byNumber := []Range{{Start: 910000, Count: 5}}
	files := map[string]string{
		"subuid": "alice:100000:65536\n", "subgid": "alice:100000:65536\n", "nsswitch.conf": "subid: sss\n",
		"getsubids": strings.Replace(fromDirectory, `"-g alice") echo "0: alice 900000 3000"`, `"-g 1000") echo "0: 1000 910000 5"`, 1),
	}
	for _, tc := range []struct {
		kind     Kind
		nsswitch string
		user     string
		uid, gid []Range
	}{
		{Static, "subid: sss\n", "alice", inFiles, inFiles},
		{Static, "", "bob", nil, nil},
		{Dynamic, "subid: files\n", "alice", byName, byNumber},
		{Dynamic, "", "bob", nil, byNumber},
		{Auto, "subid: files\n", "alice", inFiles, inFiles},
		{"", "subid: sss\n", "alice", byName, nil},
	} {
		files["nsswitch.conf"] = tc.nsswitch
		src := place(t, files)
		src.Kind = tc.kind
		got, err := Lookup(context.Background(), src, tc.user, 1000)
		if err != nil {
			t.Errorf("%s of %s: %v", tc.kind, tc.user, err)
		}
		if diff := cmp.Diff(tc.uid, got.UID); diff != "" {
			t.Errorf("%s, %s: uids:\n%s", tc.kind, tc.user, diff)
		}
		if diff := cmp.Diff(tc.gid, got.GID); diff != "" {
			t.Errorf("%s, %s: gids:\n%s", tc.kind, tc.user, diff)
		}
	}
	src := place(t, map[string]string{"subuid": "alice:1:1\n", "subgid": "alice:1:1\n"})
	src.Kind = Dynamic
	if _, err := Lookup(context.Background(), src, "alice", 1000); err == nil {
		t.Error("a getsubids that is not there was no error")
	}
}
