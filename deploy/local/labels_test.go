package local_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/deploy/local"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// TestLabelsAndBlocksGoFromTheControlPlaneToTheClickStream writes a block and a
// policy, asks as different visitors, and reads the clicks with their labels.
func TestLabelsAndBlocksGoFromTheControlPlaneToTheClickStream(t *testing.T) {
	f := start(t, local.Options{Nodes: 1})
	affctl(t, f, "affiliate", "create", "aff_1", "--parameter", "earn=1")
	affctl(t, f, "link", "create", "/deal", "https://store.example/deal", "--affiliate", "aff_1", "--wait")
	conn, err := grpc.NewClient(f.Control, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	links := adminv1.NewLinkServiceClient(conn)
	write := func(r *linkv1.Resource) {
		t.Helper()
		if _, err := links.Create(t.Context(), &adminv1.CreateRequest{Resource: r}); err != nil {
			t.Fatal(err)
		}
	}
	write(&linkv1.Resource{Kind: &linkv1.Resource_Block{Block: &linkv1.Block{
		Id: "evil", Match: &linkv1.Block_UserAgent{UserAgent: "Evil/1"}, Reason: "clicks in a loop", Action: linkv1.BlockAction_BLOCK_ACTION_REFUSE,
	}}})
	write(&linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: &linkv1.Policy{
		Scope: "affiliates/aff_1", Labels: []*linkv1.LabelPolicy{{Label: "bot", Action: linkv1.BlockAction_BLOCK_ACTION_NO_AFFILIATE}},
	}}})
	asked := 0
	ask := func(agent string) string {
		asked++
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+f.HTTP[0]+"/deal", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("User-Agent", agent)
		req.Header.Set("Accept", "*/*")
		req.Header.Set("Accept-Language", "de")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("Location"))
	}
	for end := time.Now().Add(patience); ask("Evil/1") != "403 " || ask("Googlebot/2.1") != "302 https://store.example/deal"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the block and the policy are not served: %s, %s", ask("Evil/1"), ask("Googlebot/2.1"))
		}
	}
	const person = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36"
	if got := ask(person); got != "302 https://store.example/deal?earn=1" {
		t.Errorf("a person is sent to %s", got)
	}
	said := affctl(t, f, "explain", "http://"+f.HTTP[0]+"/deal", "--node", f.Admin[1], "--ua", "Evil/1")
	if !strings.Contains(said, "blocks/evil, of user agent Evil/1, says refuse: clicks in a loop") || !strings.Contains(said, "answer    403") {
		t.Errorf("the node explains\n%s", said)
	}
	if said := affctl(t, f, "explain", "http://"+f.HTTP[0]+"/deal", "--ua", "Evil/1"); !strings.Contains(said, "treated as refuse") || !strings.Contains(said, "answer    403") {
		t.Errorf("affctl explains\n%s", said)
	}
	if said := affctl(t, f, "explain", "http://"+f.HTTP[0]+"/deal", "--ua", "Googlebot/2.1"); !strings.Contains(said, "policies/affiliates/aff_1 says no_affiliate") {
		t.Errorf("affctl explains\n%s", said)
	}
	resp, err := client.Get("http://" + f.Admin[1] + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	metrics, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	for _, want := range []string{
		`aff_labels_total{label="bot"} `, `aff_treated_total{action="refuse"} `, `aff_label_list_broken{label="bot",list="1 crawler-user-agents `,
		`aff_label_list_entries{label="preview",list="2 link-previews `, "aff_label_memory_bytes 1.6777216e+07",
	} {
		if !strings.Contains(string(metrics), want) {
			t.Errorf("%s is not among the metrics", want)
		}
	}
	has := func(c *clickstream.Click, label, reason string) bool {
		for _, l := range c.Labels {
			if l.Name == label && strings.HasPrefix(l.Reason, reason) {
				return true
			}
		}
		return false
	}
	var refused, earned, unearned bool
	for _, c := range consume(t, f, asked) {
		switch c.UserAgent {
		case "Evil/1":
			refused = refused || c.Status == 403 && has(&c, "blocked", "evil: clicks in a loop") && c.Affiliate == "aff_1" && c.Destination == ""
		case "Googlebot/2.1":
			unearned = unearned || c.Status == 302 && has(&c, "bot", "crawler-user-agents ") && c.Destination == "https://store.example/deal"
		case person:
			earned = earned || len(c.Labels) == 0 && c.Destination == "https://store.example/deal?earn=1"
		}
	}
	if !refused || !earned || !unearned {
		t.Errorf("refused %v, earned %v, without the affiliate %v", refused, earned, unearned)
	}
}
