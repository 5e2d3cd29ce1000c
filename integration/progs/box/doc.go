// Package box makes OCI containers with a runtime's command line and nothing
// else: no daemon, no shim. The programs of integration/progs run in them.
//
// A [Box] is a bundle in a folder of its own, whose root file system holds the
// programs and a folder /ctl. A program writes /ctl/ready when its object is set
// up, waits for /ctl/go, checks itself, and writes "ok" or "FAIL what: got,
// want" to /ctl/result.
//
// The caller must be a child subreaper (see [Adopt]): a detached container's
// first process becomes its child, and Wait reaps it.
package box
