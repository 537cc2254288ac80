package cue_test

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"testing"

	"github.com/oam-dev/kubevela/pkg/addon"
	"github.com/oam-dev/kubevela/pkg/multicluster"
	"github.com/oam-dev/kubevela/pkg/velaql"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

// query asks a view as `vela ql` does, of a hub and one region.
func query(t *testing.T, text string, list error, region ...map[string]any) map[string]any {
	t.Helper()
	ctx := context.Background()
	view := must(addon.RenderViews(ctx, installPackage(t)))(t)[0]
	if view.GetName() != "xregion-routes" || view.GetNamespace() != "vela-system" {
		t.Fatalf("%s/%s", view.GetNamespace(), view.GetName())
	}
	objects := []client.Object{view}
	for _, object := range region {
		objects = append(objects, &unstructured.Unstructured{Object: normal(t, object)})
	}
	hub := fake.NewClientBuilder().WithScheme(scheme(t)).WithObjects(objects...).WithInterceptorFuncs(interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, found client.ObjectList, options ...client.ListOption) error {
			if cluster := multicluster.ClusterNameInContext(ctx); cluster != "proxy-east" {
				t.Errorf("asked cluster %q", cluster)
			}
			if list != nil {
				return list
			}
			return c.List(ctx, found, options...)
		},
	}).Build()
	value := must(velaql.NewViewHandler(hub, nil).QueryView(ctx, must(velaql.ParseVelaQL(text))(t)))(t)
	var out map[string]any
	decode(t, string(must(json.Marshal(value))(t)), &out)
	return out
}

func routeMap(name, kind string, data map[string]any) map[string]any {
	object := configMap(name, data)
	object["metadata"].(map[string]any)["labels"] = map[string]any{"xregion.oam.dev/kind": kind, "xregion.oam.dev/hub": "1234abcd"}
	return object
}

func TestTheViewListsTheRoutesOfARegion(t *testing.T) {
	data := map[string]any{
		"schema": "1", "hub": "uid", "cluster": "business-a", "host": "a.example", "port": "443", "listen": "8000", "alias": "a.example",
		"provenAt": "2026-01-02T03:04:05Z", "mode": "port",
	}
	got := query(t, "xregion-routes{region=proxy-east}", nil,
		routeMap("xregion-route-business-a-1234abcd", "route", data),
		routeMap("xregion-route-new-1234abcd", "route", map[string]any{"cluster": "new"}),
		routeMap("xregion-region", "region", map[string]any{"cluster": "no"}))
	want := map[string]any{"routes": []any{
		map[string]any{
			"name": "xregion-route-business-a-1234abcd", "hub": "1234abcd", "cluster": "business-a", "host": "a.example", "port": "443",
			"mode": "port", "listen": "8000", "alias": "a.example", "provenAt": "2026-01-02T03:04:05Z",
		},
		map[string]any{"name": "xregion-route-new-1234abcd", "hub": "1234abcd", "cluster": "new"},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
}

func TestTheViewOfARegionThatIsSilentSaysSo(t *testing.T) {
	got := query(t, "xregion-routes{region=proxy-east}", errors.New("no answer"))
	if want := map[string]any{"error": "no answer", "routes": []any{}}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
}
