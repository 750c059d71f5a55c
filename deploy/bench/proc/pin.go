package proc

import (
	"fmt"
	"os/exec"
	"strconv"
)

// Pin lets a process, with all its threads, run only on some cores, as taskset
// names them: "0", "0,1". What it starts from then on runs there too.
func Pin(pid int, cores string) error {
	if out, err := exec.Command("taskset", "-a", "-c", "-p", cores, strconv.Itoa(pid)).CombinedOutput(); err != nil {
		return fmt.Errorf("taskset: %w\n%s", err, out)
	}
	return nil
}
