package clickstream

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"testing"

	"github.com/klauspost/compress/snappy"
)

// The Python of the README uncompresses what nodes send, and long literals and
// far copies as well.
func TestThePythonOfTheREADMEUncompresses(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3 is not installed")
	}
	text, err := os.ReadFile("../../proto/aff/click/v1/README.md")
	if err != nil {
		t.Fatal(err)
	}
	function := regexp.MustCompile(`(?s)def uncompress\(block\):.*?return bytes\(out\)\n`).Find(text)
	if function == nil {
		t.Fatal("the README has no such function")
	}
	program := "import sys\n" + string(function) + "sys.stdout.buffer.write(uncompress(sys.stdin.buffer.read()))\n"
	random := make([]byte, 80_000)
	_, _ = rand.NewChaCha8([32]byte{}).Read(random)
	for name, want := range map[string][]byte{
		"a batch":  browserBatch(t, 1, 1, 600),
		"literals": random,
		"far":      append(append(bytes.Clone(random[:40_000]), make([]byte, 300)...), random[:40_000]...),
		"nothing":  {},
	} {
		cmd := exec.Command(python, "-c", program)
		cmd.Stdin = bytes.NewReader(snappy.Encode(nil, want))
		got, err := cmd.Output()
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v, %d bytes of %d", name, err, len(got), len(want))
		}
	}
}
