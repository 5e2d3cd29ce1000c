package images_test

import (
	"fmt"

	"github.com/stasis-cr/stasis/images"
)

// A directory that holds no checkpoint is told apart from a damaged one.
func ExampleOpen() {
	d, err := images.Open("/proc/self/task")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(d.Image().Container.GetId())
	// Output: image directory /proc/self/task: no state.img: not a stasis checkpoint
}
