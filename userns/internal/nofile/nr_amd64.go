package nofile

// prlimit64 is the number of prlimit(2) on x86-64.
const prlimit64 = 302
