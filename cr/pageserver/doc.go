// Package pageserver gives a checkpoint to other machines, and takes it from
// there: state, archives and page stores, those of earlier checkpoints included.
//
// A [Server] holds the files of one checkpoint open and answers reads of them,
// and of nothing else: a request has no name in it, only numbers of what the
// image names. A [Client] reads through connections that it makes anew when they
// break. Both sides show a certificate, and both check it: there is no other way
// to speak. docs/PAGE-SERVER.md describes what they say.
//
// The client trusts the server as little as a file: state.img is what the digest
// says, and the checksums in it are of all the rest.
package pageserver
