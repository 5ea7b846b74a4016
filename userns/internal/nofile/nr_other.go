//go:build !amd64 && !arm64 && !riscv64 && !loong64

package nofile

// prlimit64 is not known here: Original reports false.
const prlimit64 = 0
