//go:build arm64 || riscv64 || loong64

package nofile

// prlimit64 is the number of prlimit(2) where the kernel's generic table holds.
const prlimit64 = 261
