package slirpcli

import (
	"errors"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// original runs the installed slirp4netns with a command line that it refuses, or
// answers, at once: no namespace is touched.
func original(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	path, err := exec.LookPath("slirp4netns")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("slirp4netns is missing, and CI=true")
		}
		t.Skip("needs slirp4netns")
	}
	var out, errs strings.Builder
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// optionLine is the beginning of a line of the usage about an option.
var optionLine = regexp.MustCompile(`(?m)^(?:-\w, )?--[a-z0-9-]+(?:=\S+)?\s+`)

// TestHelpHasTheColumnOfTheOriginal: whatever caller looks for an option in the help
// of the original finds it in ours, at the same place of the line.
func TestHelpHasTheColumnOfTheOriginal(t *testing.T) {
	theirs, _, code := original(t, "--help")
	if code != 0 {
		t.Fatalf("the original's --help ends with %d", code)
	}
	lines := optionLine.FindAllString(theirs, -1)
	if len(lines) < 19 {
		t.Fatalf("only %d options in the original's help:\n%s", len(lines), theirs)
	}
	for _, column := range lines {
		if !strings.Contains(Help, "\n"+column) {
			t.Errorf("the help has no line that begins with %q", column)
		}
	}
}

// TestMistakesAreThoseOfTheOriginal compares the exit code, whether there is a
// usage, and the message where it is getopt's.
func TestMistakesAreThoseOfTheOriginal(t *testing.T) {
	usage, _, _ := original(t, "--help")
	for _, line := range []string{
		"", "42", "-c 42", "--netns-type=path /x", "--foo 42 tap0", "--foo=1 42 tap0", "-z 42 tap0", "-cz 42 tap0",
		"-m", "42 tap0 --mtu", "--configure=1 42 tap0", "-5 tap0", "abc tap0", "0 tap0", "--outbound 1 42 tap0",
		"--enable-s=x", "--m=x", "--e=x", "--n=x", "--d=x", "--c=x", "--no=x", "--create=x", "--net",
		"-m 0 42 tap0", "-m 65522 42 tap0", "-m x 42 tap0", "-m 99999 -h", "-r -1 42 tap0", "-e x 42 tap0",
		"--cidr=10.0.2.1/24 42 tap0", "--cidr=10.0.2.0/26 42 tap0", "--cidr=10.0.2.0/0 42 tap0", "--cidr=10.0.2.0 42 tap0",
		"--macaddress=02:00:00:00:00:01 42 tap0", "-c --macaddress=xx 42 tap0", "--target-type=vm 42 tap0",
		"--target-type=bess", "--target-type=bess -c /nowhere/s", "--target-type=bess --netns-type=pid /nowhere/s",
		"--target-type=bess --userns-path=/ /nowhere/s", "--target-type=bess /nowhere/s tap0",
	} {
		args := strings.Fields(line)
		stdout, stderr, code := original(t, args...)
		_, err := Parse(args)
		if code != 1 || err == nil {
			t.Errorf("%s: the original ends with %d, ours with %v", line, code, err)
			continue
		}
		var mistake *UsageError
		if got, want := errors.As(err, &mistake), stdout == usage; got != want {
			t.Errorf("%s: usage %t, the original's %t", line, got, want)
		}
		message, found := strings.CutPrefix(stderr, "slirp4netns: ")
		if found && strings.TrimSpace(message) != err.Error() {
			t.Errorf("%s: %q, the original's %q", line, err, message)
		}
		if stderr == "" && (mistake == nil || mistake.Err != nil) {
			t.Errorf("%s: says %q, the original nothing", line, err)
		}
	}
}

func TestVersionHasTheLinesOfTheOriginal(t *testing.T) {
	theirs, _, code := original(t, "--version")
	if code != 0 {
		t.Fatalf("the original's --version ends with %d", code)
	}
	ours := strings.Split(Version("v1", "abc"), "\n")
	for i, line := range strings.Split(strings.TrimSpace(theirs), "\n") {
		if key := strings.Fields(line)[0]; !strings.HasPrefix(ours[i], key+" ") {
			t.Errorf("line %d is %q, want it to begin with %q", i, ours[i], key)
		}
	}
	if slices.Contains(ours, "") && ours[len(ours)-1] != "" {
		t.Errorf("an empty line in %q", ours)
	}
}
