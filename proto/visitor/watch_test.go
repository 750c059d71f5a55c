package visitor

import (
	"context"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/maxmind/mmdbwriter/mmdbtype"
)

func TestWatchReadsWhatIsReplacedAndReportsWhatIsBroken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "city.mmdb")
	writeFile(t, path, writeDatabase(t, map[string]mmdbtype.Map{"192.0.2.0/24": city("DE", "", "")}))
	s := open(t, Config{Geo: []string{path}})
	s.every = time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	reports, ended := make(chan error, 8), make(chan struct{})
	go func() {
		defer close(ended)
		s.Watch(ctx, func(err error) { reports <- err })
	}()
	defer func() { cancel(); <-ended }()
	country := func() string { return s.Place(netip.MustParseAddr("192.0.2.1")).Country }
	writeFile(t, path, []byte("broken"))
	if err := <-reports; !strings.Contains(err.Error(), "city.mmdb") || country() != "DE" {
		t.Fatalf("%v, and the country is %s", err, country())
	}
	writeFile(t, path, writeDatabase(t, map[string]mmdbtype.Map{"192.0.2.0/24": city("FR", "", "")}))
	for end := time.Now().Add(20 * time.Second); country() != "FR"; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the new database is not in use")
		}
	}
}
