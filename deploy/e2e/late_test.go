package e2e

import (
	"fmt"
	"net/http"
	"testing"

	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// TestNodeThatWasOffWhileLinksWereReplacedServesThem replaces a quarter of the links, a
// hundred at a time, which no guard of the control plane minds: nor may that of a node
// that has missed all of it.
func TestNodeThatWasOffWhileLinksWereReplacedServesThem(t *testing.T) {
	f := startFleet(t, 1, 2)
	r := f.replica(0)
	batch := func(from, to int, write func(path string) *adminv1.Write) (v *linkv1.Version) {
		for ; from < to; from += 100 {
			req := new(adminv1.BatchWriteRequest)
			for i := range 100 {
				req.Writes = append(req.Writes, write(fmt.Sprintf("/%d", from+i)))
			}
			w, err := r.links.BatchWrite(soon(t), req)
			f.must(err)
			v = w.GetVersion()
		}
		return v
	}
	create := func(path string) *adminv1.Write {
		return &adminv1.Write{Verb: &adminv1.Write_Create{Create: &adminv1.CreateRequest{Resource: linkTo(path, "https://store.com/")}}}
	}
	remove := func(path string) *adminv1.Write {
		return &adminv1.Write{Verb: &adminv1.Write_Delete{Delete: &adminv1.DeleteRequest{Name: "links/*" + path}}}
	}
	f.served(r, batch(0, 2000, create), 2)
	if code, err := f.Nodes[1].Stop(); code != 0 {
		t.Fatal(code, err)
	}
	f.served(r, batch(2000, 2500, create), 1)
	v := batch(0, 500, remove)
	f.served(r, v, 1)
	f.must(f.Nodes[1].Restart())
	f.ready(1)
	f.served(r, v, 2)
	for path, want := range map[string]int{"/499": http.StatusNotFound, "/500": http.StatusFound, "/2400": http.StatusFound} {
		if got := status(f.NodeAddr[1], path); got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
}
