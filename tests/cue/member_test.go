package cue_test

import (
	"context"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/oam-dev/kubevela/apis/core.oam.dev/v1beta1"
	"github.com/oam-dev/kubevela/pkg/cue/definition/health"
	"github.com/oam-dev/kubevela/pkg/utils/apply"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// renderMember completes xregion-member as KubeVela does, in an Application of this name.
func renderMember(t *testing.T, app string, parameters map[string]any) (corev1.ConfigMap, error) {
	t.Helper()
	var rendered corev1.ConfigMap
	output, others, err := completeComponent(t, "xregion-member", app, "business-a", parameters)
	if err != nil {
		return rendered, err
	}
	if len(others) != 0 {
		t.Errorf("%d further objects", len(others))
	}
	convert(t, output.Object, &rendered)
	return rendered, nil
}

func least(more map[string]any) map[string]any {
	parameters := map[string]any{"region": "proxy-east", "kubeconfig": map[string]any{"secret": "business-a-kubeconfig"}}
	for key, value := range more {
		parameters[key] = value
	}
	return parameters
}

func TestAMemberIsAConfigMapOfItsOwn(t *testing.T) {
	member := must(renderMember(t, "one", least(nil)))(t)
	other := must(renderMember(t, "two", least(nil)))(t)
	if !strings.HasPrefix(member.Name, "xregion-member-business-a-") || member.Name == other.Name || member.Namespace != "vela-system" {
		t.Errorf("%s %s", member.Name, other.Name)
	}
	if member.Labels["xregion.oam.dev/kind"] != "member" || member.Annotations["xregion.oam.dev/force"] != "false" {
		t.Errorf("%+v", member.ObjectMeta)
	}
	// the controller sets it when there is something to wait for
	if len(member.Finalizers) != 0 {
		t.Errorf("%v", member.Finalizers)
	}
}

func TestEveryParameterReachesTheController(t *testing.T) {
	for name, c := range map[string]struct {
		parameters map[string]any
		want       map[string]any
	}{
		"the least": {least(nil), map[string]any{
			"cluster": "business-a", "region": "proxy-east", "secret": "business-a-kubeconfig", "key": "kubeconfig", "allowSecondName": false, "replace": false,
		}},
		"all": {
			least(map[string]any{
				"cluster": "b", "kubeconfig": map[string]any{"secret": "s", "key": "k", "context": "c"}, "labels": map[string]any{"tier": "gold"},
				"nodePort": 30001, "mode": "sni", "sourceRanges": []string{"10.80.0.0/24"}, "maxConnections": 20, "allowSecondName": true, "replace": true, "force": true,
			}),
			map[string]any{
				"cluster": "b", "region": "proxy-east", "secret": "s", "key": "k", "context": "c", "labels": map[string]any{"tier": "gold"},
				"nodePort": float64(30001), "mode": "sni", "sourceRanges": []any{"10.80.0.0/24"}, "maxConnections": float64(20), "allowSecondName": true, "replace": true,
			},
		},
	} {
		member := must(renderMember(t, "one", c.parameters))(t)
		var got map[string]any
		if err := json.Unmarshal([]byte(member.Data["parameters"]), &got); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, c.want) || len(member.Data) != 1 {
			t.Errorf("%s: %v", name, member.Data)
		}
		if want := map[bool]string{true: "true", false: "false"}[name == "all"]; member.Annotations["xregion.oam.dev/force"] != want {
			t.Errorf("%s: %v", name, member.Annotations)
		}
	}
}

func TestBadParametersOfAMemberAreRefused(t *testing.T) {
	for _, parameters := range []map[string]any{
		{"kubeconfig": map[string]any{"secret": "s"}},
		{"region": "proxy-east"},
		least(map[string]any{"kubeconfig": map[string]any{"key": "k"}}),
		least(map[string]any{"kubeconfig": map[string]any{"secret": "s", "kye": "k"}}),
		least(map[string]any{"nodePort": "30001"}),
		least(map[string]any{"sourceRanges": "10.80.0.0/24"}),
		least(map[string]any{"maxConnections": 0}),
		least(map[string]any{"maxConnections": -1}),
		least(map[string]any{"maxConnections": 65536}),
		least(map[string]any{"maxConnections": "20"}),
		least(map[string]any{"mode": "name"}),
		least(map[string]any{"labels": map[string]any{"tier": 1}}),
		least(map[string]any{"replace": "yes"}),
		least(map[string]any{"region": 1}),
	} {
		if _, err := renderMember(t, "one", parameters); err == nil {
			t.Errorf("%v was accepted", parameters)
		}
	}
}

func TestStatusOfAMember(t *testing.T) {
	var component v1beta1.ComponentDefinition
	convert(t, loadDefinition(t, "xregion-member").Object, &component)
	s := component.Spec.Status
	const nobody = "nobody has taken it up yet (where this lasts, the addon's controller does not run: vela addon upgrade xregion controller.enabled=true)"
	for name, c := range map[string]struct {
		data    map[string]any
		healthy bool
		message string
	}{
		"new":      {map[string]any{"parameters": "{}"}, false, nobody},
		"joining":  {map[string]any{"parameters": "{}", "seen": "{}", "state": "joining", "message": "joining through east"}, false, "joining through east"},
		"joined":   {map[string]any{"parameters": "{}", "seen": "{}", "state": "joined", "message": "joined through east, port 30000"}, true, "joined through east, port 30000"},
		"broken":   {map[string]any{"parameters": "{}", "seen": "{}", "state": "broken", "message": "joined, but no"}, false, "joined, but no"},
		"changed":  {map[string]any{"parameters": `{"a":1}`, "seen": "{}", "state": "joined", "message": "joined through east"}, false, nobody},
		"failed":   {map[string]any{"parameters": "{}", "seen": "{}", "state": "failed", "message": "no (yes)"}, false, "no (yes)"},
		"no data":  {map[string]any{}, false, nobody},
		"no state": {map[string]any{"parameters": "{}", "seen": "{}"}, false, ""},
	} {
		got := must(health.GetStatus(map[string]any{"output": map[string]any{"data": c.data}}, &health.StatusRequest{Health: s.HealthPolicy, Custom: s.CustomStatus}))(t)
		if got.Healthy != c.healthy || got.Message != c.message {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got := must(health.GetStatus(map[string]any{}, &health.StatusRequest{Health: s.HealthPolicy, Custom: s.CustomStatus}))(t); got.Healthy || got.Message != nobody {
		t.Errorf("without a ConfigMap: %+v", got)
	}
}

// What the controller writes into the component's own object rests on this.
func TestKubeVelaLeavesTheControllersFieldsAloneWhenItAppliesAgain(t *testing.T) {
	ctx := context.Background()
	hub := cluster(t)
	applied := func(parameters map[string]any) *corev1.ConfigMap {
		member := must(renderMember(t, "one", parameters))(t)
		member.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}
		object := must(runtime.DefaultUnstructuredConverter.ToUnstructured(&member))(t)
		delete(object["metadata"].(map[string]any), "creationTimestamp")
		if err := apply.NewAPIApplicator(hub).Apply(ctx, &unstructured.Unstructured{Object: object}); err != nil {
			t.Fatal(err)
		}
		live := &corev1.ConfigMap{}
		if err := hub.Get(ctx, client.ObjectKeyFromObject(&member), live); err != nil {
			t.Fatal(err)
		}
		return live
	}
	live := applied(least(map[string]any{"nodePort": 30001}))
	live.Data["state"] = "joined"
	live.Annotations["xregion.oam.dev/applied"] = "digest"
	live.Finalizers = []string{"xregion.oam.dev/member"}
	if err := hub.Update(ctx, live); err != nil {
		t.Fatal(err)
	}
	again := applied(least(nil))
	if again.Data["state"] != "joined" || again.Annotations["xregion.oam.dev/applied"] != "digest" || !reflect.DeepEqual(again.Finalizers, live.Finalizers) {
		t.Errorf("%+v", again)
	}
	if strings.Contains(again.Data["parameters"], "nodePort") {
		t.Errorf("%v", again.Data)
	}
	// it would have been left in a key of its own
	live = again.DeepCopy()
	live.Data["nodePort"] = "30001"
	if err := hub.Update(ctx, live); err != nil {
		t.Fatal(err)
	}
	if again = applied(least(nil)); again.Data["nodePort"] != "30001" {
		t.Errorf("KubeVela removes keys by now: %v", again.Data)
	}
}

func TestTheExampleOfAMemberRenders(t *testing.T) {
	var app v1beta1.Application
	decode(t, read(t, "../../examples/member.yaml"), &app)
	var parameters map[string]any
	decode(t, string(app.Spec.Components[0].Properties.Raw), &parameters)
	must(renderMember(t, app.Name, parameters))(t)
	if len(app.Spec.Policies) != 0 {
		t.Errorf("%+v", app.Spec.Policies)
	}
}
