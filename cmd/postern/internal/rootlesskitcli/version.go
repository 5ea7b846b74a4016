package rootlesskitcli

import (
	"fmt"
	"strings"
)

// The version of RootlessKit whose command line and API this is.
const (
	major = 3
	minor = 3
	patch = 0
)

// Component returns a component of the version: major, minor or patch.
func Component(name string) (int, error) {
	switch name {
	case "major":
		return major, nil
	case "minor":
		return minor, nil
	case "patch":
		return patch, nil
	}
	return 0, fmt.Errorf("--print-semver %.32q: want major, minor or patch", name)
}

// VersionText is what --version prints, without the newline. RootlessKit's version
// comes first, as the third word, because scripts compare it.
func VersionText(postern string) string {
	return fmt.Sprintf("rootlesskit version %d.%d.%d (postern %s)", major, minor, patch, postern)
}

// APIVersion is the version that the control socket tells. Clients that compare it
// get RootlessKit's; the build metadata (semver.org, section 10), which does not
// count in comparisons, says whose it is.
func APIVersion(postern string) string {
	safe := strings.Map(func(r rune) rune {
		switch {
		case '0' <= r && r <= '9', 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', r == '.', r == '-':
			return r
		}
		return '-'
	}, postern)
	return fmt.Sprintf("%d.%d.%d+postern.%s", major, minor, patch, safe)
}
