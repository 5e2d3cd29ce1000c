// Package migrate moves a running container to another machine.
//
// Four processes take part, two on each side, so that any one of them may die:
//
//	source   follows the container, sends its memory in rounds, stops it, and
//	         lets it end when it runs over there
//	guard    beside the source, for when that dies: serves the last checkpoint,
//	         and ends the container or lets it go on, as the target says
//	session  on the other machine: takes what comes, has the container restored,
//	         and lets it go when the source says so
//	listener hands each connection to a session of its own; a later session tells
//	         what became of one that died
//
// The container goes on where it was unless the source has seen that it is there,
// whole and ready, on the other side. Then it is put where neither side's death
// moves it, in the cgroup freezer, and only then the word is given. It ends when
// the other side says that it runs, and thaws when that says that it will not.
// docs/MIGRATION.md describes what the two sides say.
package migrate
