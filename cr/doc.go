// Package cr checkpoints and restores containers: [Check], [Checkpoint] and
// [Restore] are the order of the steps, each in one file that reads top to
// bottom. What the steps do lies in the packages below.
//
// The engine runs in a process of its own and all ptrace calls come from the
// thread that called it: the package locks the goroutine to its thread for the
// whole run. If the process dies, the kernel lets every task of a checkpoint go
// on as it was, and kills every task of a restore.
package cr
