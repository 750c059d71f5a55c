// Command affguard looks for fraud in the stream of clicks.
package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "replay" {
		os.Exit(replayMain(os.Args[2:]))
	}
	fmt.Fprintln(os.Stderr, "affguard: see affguard replay --help")
	os.Exit(2)
}
