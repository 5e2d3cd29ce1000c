package images

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// inventory is what inventory.img holds: its readers only ask whether it exists.
const inventory = "This checkpoint was made by stasis. Its inventory is state.img.\n"

// fileMode is the mode of every file made here: nobody but the owner has any
// business in a checkpoint.
const fileMode = 0o600

// Finish adds the files that neighbours look for to the complete checkpoint in
// the directory path. It may be called again. What fails here fails only the
// neighbours: the checkpoint is whole without.
func Finish(path string) (err error) {
	d, err := Open(path)
	if err != nil {
		return err
	}
	externals := d.Image().Container.GetExternals()
	if err := d.Close(); err != nil {
		return err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return fmt.Errorf("image directory: %w", err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	b, err := json.Marshal(descriptors(externals))
	if err != nil {
		return fmt.Errorf("descriptors.json: %w", err)
	}
	return errors.Join(
		put(root, "descriptors.json", b),
		put(root, "inventory.img", []byte(inventory)),
	)
}

// descriptors makes the three strings that runc writes out of what is known.
func descriptors(externals []string) []string {
	three := []string{"/dev/null", "/dev/null", "/dev/null"}
	for i := range min(len(three), len(externals)) {
		if externals[i] != "" {
			three[i] = externals[i]
		}
	}
	return three
}

// put writes a small file whole or not at all. The temporary name is one that
// the next writer of a checkpoint removes if we die.
func put(root *os.Root, name string, b []byte) error {
	temp := ".stasis-" + name + ".tmp"
	if err := root.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, root.Remove(temp))
	}
	return root.Rename(temp, name)
}
