package cue_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/oam-dev/kubevela/apis/core.oam.dev/v1beta1"
	"github.com/oam-dev/kubevela/pkg/cue/definition/health"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// renderProxy completes xregion-proxy as KubeVela does: the Deployment, and the other objects by "Kind/name".
func renderProxy(t *testing.T, parameters map[string]any) (appsv1.Deployment, map[string]*unstructured.Unstructured, error) {
	t.Helper()
	var deployment appsv1.Deployment
	output, others, err := completeComponent(t, "xregion-proxy", "region-east", "east", parameters)
	if err != nil {
		return deployment, nil, err
	}
	convert(t, output.Object, &deployment)
	objects := map[string]*unstructured.Unstructured{}
	for _, other := range others {
		u := must(other.Ins.Unstructured())(t)
		objects[u.GetKind()+"/"+u.GetName()] = u
	}
	return deployment, objects, nil
}

// convert decodes strictly: a misplaced field of the template is an error.
func convert(t *testing.T, from any, into any) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(string(must(json.Marshal(from))(t))))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		t.Fatal(err)
	}
}

func region(t *testing.T, objects map[string]*unstructured.Unstructured) string {
	t.Helper()
	return at(t, objects["ConfigMap/xregion-region"].Object, "data", "region.json").(string)
}

func TestTheProxyWithoutParameters(t *testing.T) {
	deployment, objects, err := renderProxy(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	if deployment.Name != "east" || deployment.Namespace != "vela-system" || *deployment.Spec.Replicas != 2 {
		t.Errorf("%+v", deployment.ObjectMeta)
	}
	selected := map[string]string{"xregion.oam.dev/kind": "proxy", "app.oam.dev/component": "east"}
	if !reflect.DeepEqual(deployment.Spec.Selector.MatchLabels, selected) {
		t.Errorf("selector %v", deployment.Spec.Selector.MatchLabels)
	}
	for key, value := range selected {
		if deployment.Spec.Template.Labels[key] != value {
			t.Errorf("pods lack %s", key)
		}
	}
	if rolling := deployment.Spec.Strategy.RollingUpdate; rolling.MaxUnavailable.IntValue() != 0 || rolling.MaxSurge.IntValue() != 1 {
		t.Errorf("%+v", rolling)
	}
	want := `{"entry":"nodePort","loadBalancer":{},"nodes":{"selector":{},"addressType":"InternalIP"},"nodePorts":{"first":30000,"last":30085},"upstreams":{"allow":[]},` +
		`"externalTrafficPolicy":"Local","sourceRanges":[],"timeouts":{"connectSeconds":3,"idleSeconds":14400,"drainSeconds":3600},"maxConnections":0}`
	if got := region(t, objects); got != want {
		t.Errorf("%s", got)
	}
	if labels := objects["ConfigMap/xregion-region"].GetLabels(); labels["xregion.oam.dev/kind"] != "region" {
		t.Errorf("%v", labels)
	}
	for _, name := range []string{
		"ServiceAccount/xregion-proxy", "Role/xregion-proxy", "RoleBinding/xregion-proxy", "ClusterRole/xregion-proxy", "ClusterRoleBinding/xregion-proxy",
		"Role/xregion-hub", "RoleBinding/xregion-hub", "ClusterRole/xregion-hub", "ClusterRoleBinding/xregion-hub", "PodDisruptionBudget/east",
	} {
		object, found := objects[name]
		if !found {
			t.Errorf("no %s", name)
		} else if namespace := object.GetNamespace(); (namespace == "") != strings.HasPrefix(name, "Cluster") {
			t.Errorf("%s in namespace %q", name, namespace)
		}
	}
}

func TestTheProxyIsRestrictedAndSpread(t *testing.T) {
	deployment, _, err := renderProxy(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	pod := deployment.Spec.Template.Spec
	if !*pod.SecurityContext.RunAsNonRoot || *pod.SecurityContext.RunAsUser != 65532 || pod.SecurityContext.SeccompProfile.Type != "RuntimeDefault" {
		t.Errorf("%+v", pod.SecurityContext)
	}
	for _, container := range append(pod.InitContainers, pod.Containers...) {
		context := container.SecurityContext
		if *context.AllowPrivilegeEscalation || !*context.ReadOnlyRootFilesystem || !reflect.DeepEqual(context.Capabilities.Drop, []corev1.Capability{"ALL"}) {
			t.Errorf("%s: %+v", container.Name, context)
		}
		if container.Resources.Requests.Cpu().IsZero() || container.Resources.Limits.Memory().IsZero() {
			t.Errorf("%s: %+v", container.Name, container.Resources)
		}
	}
	if len(pod.TopologySpreadConstraints) != 1 || pod.TopologySpreadConstraints[0].TopologyKey != "kubernetes.io/hostname" {
		t.Errorf("%+v", pod.TopologySpreadConstraints)
	}
	proxy := pod.Containers[0]
	if proxy.ReadinessProbe.HTTPGet.Path != "/readyz" || proxy.LivenessProbe.HTTPGet.Path != "/livez" || proxy.Ports[0].ContainerPort != 7080 {
		t.Errorf("%+v", proxy)
	}
	if !reflect.DeepEqual(proxy.Command, []string{"/xregion/xregion", "agent"}) || !reflect.DeepEqual(pod.InitContainers[0].Args, []string{"install", "/install"}) {
		t.Errorf("%v %v", proxy.Command, pod.InitContainers[0].Args)
	}
	// in its image /xregion is the binary, and a directory can't be mounted over a file
	if mount := pod.InitContainers[0].VolumeMounts[0]; mount.MountPath != "/install" || proxy.VolumeMounts[0].Name != mount.Name || proxy.VolumeMounts[0].MountPath != "/xregion" {
		t.Errorf("%v %v", mount, proxy.VolumeMounts)
	}
	if *pod.TerminationGracePeriodSeconds != 45 {
		t.Errorf("grace period %d", *pod.TerminationGracePeriodSeconds)
	}
}

func TestEveryParameterReachesTheProxy(t *testing.T) {
	deployment, objects, err := renderProxy(t, map[string]any{
		"replicas": 3, "image": "mirror/x:1", "nginxImage": "mirror/nginx:1", "imagePullPolicy": "Always", "imagePullSecrets": []string{"pull"},
		"resources":             map[string]any{"requests": map[string]any{"cpu": "1"}, "limits": map[string]any{"cpu": "2", "memory": "2Gi"}},
		"nodeSelector":          map[string]any{"pool": "edge"},
		"tolerations":           []any{map[string]any{"key": "edge", "operator": "Exists"}},
		"nodes":                 map[string]any{"selector": map[string]any{"entry": "yes"}, "addressType": "ExternalIP"},
		"nodePorts":             map[string]any{"first": 31000, "last": 31999, "sni": 30443},
		"upstreams":             map[string]any{"allow": []string{"10.0.0.0/8", "*.EKS.example", "2001:db8::7", "a-1.example.", "kubernetes"}},
		"timeouts":              map[string]any{"connectSeconds": 5, "idleSeconds": 60, "drainSeconds": 10},
		"externalTrafficPolicy": "Cluster",
		"sourceRanges":          []string{"10.80.0.0/24", "192.0.2.1", "2001:db8::/32"},
		"maxConnections":        100, "entry": "loadBalancer", "healthPort": 7090,
		"loadBalancer": map[string]any{"class": "c", "annotations": map[string]any{"internal": "true"}, "sourceRanges": []string{"10.80.0.0/24"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	pod := deployment.Spec.Template.Spec
	proxy := pod.Containers[0]
	if *deployment.Spec.Replicas != 3 || pod.InitContainers[0].Image != "mirror/x:1" || proxy.Image != "mirror/nginx:1" || proxy.ImagePullPolicy != "Always" ||
		pod.InitContainers[0].ImagePullPolicy != "Always" || pod.ImagePullSecrets[0].Name != "pull" || pod.NodeSelector["pool"] != "edge" ||
		pod.Tolerations[0].Operator != "Exists" || proxy.Resources.Limits.Memory().String() != "2Gi" || proxy.Resources.Requests.Memory().String() != "128Mi" {
		t.Errorf("%+v", pod)
	}
	want := `{"entry":"loadBalancer","loadBalancer":{"class":"c","annotations":{"internal":"true"},"sourceRanges":["10.80.0.0/24"]},"nodes":{"selector":{"entry":"yes"},"addressType":"ExternalIP"},"nodePorts":{"first":31000,"last":31999,"sni":30443},` +
		`"upstreams":{"allow":["10.0.0.0/8","*.eks.example","2001:db8::7","a-1.example.","kubernetes"]},"externalTrafficPolicy":"Cluster","sourceRanges":["10.80.0.0/24","192.0.2.1","2001:db8::/32"],"timeouts":{"connectSeconds":5,"idleSeconds":60,"drainSeconds":10},` +
		`"maxConnections":100}`
	if got := region(t, objects); got != want {
		t.Errorf("%s", got)
	}
}

func TestProxiesOnTheHostNetworkHaveANodeEach(t *testing.T) {
	deployment, _, err := renderProxy(t, map[string]any{"entry": "hostNetwork", "healthPort": 7099})
	if err != nil {
		t.Fatal(err)
	}
	pod, rolling := deployment.Spec.Template.Spec, deployment.Spec.Strategy.RollingUpdate
	if !pod.HostNetwork || pod.DNSPolicy != corev1.DNSClusterFirstWithHostNet || rolling.MaxSurge.IntValue() != 0 || rolling.MaxUnavailable.IntValue() != 1 {
		t.Errorf("%+v %+v", pod, rolling)
	}
	// the port of health, which the API server makes a host port, keeps them apart
	if pod.Affinity != nil {
		t.Errorf("%+v", pod.Affinity)
	}
	proxy := pod.Containers[0]
	if !reflect.DeepEqual(proxy.Command, []string{"/xregion/xregion", "agent", "--health-port=7099"}) || proxy.Ports[0].ContainerPort != 7099 {
		t.Errorf("%+v", proxy)
	}
	if !*pod.SecurityContext.RunAsNonRoot {
		t.Error("it needs no more rights there")
	}
}

func networkPolicy(t *testing.T, parameters map[string]any) *networkingv1.NetworkPolicy {
	t.Helper()
	_, objects, err := renderProxy(t, parameters)
	if err != nil {
		t.Fatal(err)
	}
	object, found := objects["NetworkPolicy/east"]
	if !found {
		return nil
	}
	var policy networkingv1.NetworkPolicy
	convert(t, object.Object, &policy)
	return &policy
}

func cidrs(peers []networkingv1.NetworkPolicyPeer) []string {
	found := []string{}
	for _, peer := range peers {
		found = append(found, peer.IPBlock.CIDR)
	}
	return found
}

func TestAPolicyLetsInWhatIsServedAndOutWhatIsNeeded(t *testing.T) {
	if networkPolicy(t, nil) != nil {
		t.Error("a policy that nobody asked for")
	}
	policy := networkPolicy(t, map[string]any{"networkPolicy": map[string]any{}})
	if policy == nil || policy.Namespace != "vela-system" || !reflect.DeepEqual(policy.Spec.PodSelector.MatchLabels, map[string]string{"xregion.oam.dev/kind": "proxy", "app.oam.dev/component": "east"}) ||
		!reflect.DeepEqual(policy.Spec.PolicyTypes, []networkingv1.PolicyType{"Ingress", "Egress"}) {
		t.Fatalf("%+v", policy)
	}
	routes, health := policy.Spec.Ingress[0], policy.Spec.Ingress[1]
	// nor health and metrics, which may be on any port between those of routes
	if len(routes.From) != 0 || routes.Ports[0].Port.IntVal != 7443 || routes.Ports[0].EndPort != nil || routes.Ports[1].Port.IntVal != 8000 || *routes.Ports[1].EndPort != 65535 {
		t.Errorf("%+v", routes)
	}
	if len(health.From) != 1 || health.From[0].NamespaceSelector == nil || health.Ports[0].Port.StrVal != "health" {
		t.Errorf("%+v", health)
	}
	dns, api, upstreams := policy.Spec.Egress[0], policy.Spec.Egress[1], policy.Spec.Egress[2]
	if len(dns.To) != 0 || len(dns.Ports) != 4 || *dns.Ports[0].Protocol != corev1.ProtocolUDP || dns.Ports[0].Port.IntVal != 53 {
		t.Errorf("%+v", dns)
	}
	if len(api.To) != 0 || len(api.Ports) != 2 || api.Ports[1].Port.IntVal != 6443 {
		t.Errorf("%+v", api)
	}
	if len(upstreams.To) != 0 || upstreams.Ports[0].Port != nil {
		t.Errorf("%+v", upstreams)
	}
}

func TestAPolicyIsAsNarrowAsTheRegion(t *testing.T) {
	policy := networkPolicy(t, map[string]any{
		"networkPolicy": map[string]any{"apiServer": []string{"10.80.1.21/32"}},
		"sourceRanges":  []string{"10.80.0.0/24", "10.80.4.1", "2001:db8::1"},
		"upstreams":     map[string]any{"allow": []string{"10.80.1.0/24", "192.0.2.7", "2001:db8::/32"}},
	})
	if got := cidrs(policy.Spec.Ingress[0].From); !reflect.DeepEqual(got, []string{"10.80.0.0/24", "10.80.4.1/32", "2001:db8::1/128"}) {
		t.Errorf("%v", got)
	}
	if api := policy.Spec.Egress[1]; !reflect.DeepEqual(cidrs(api.To), []string{"10.80.1.21/32"}) || len(api.Ports) != 1 || api.Ports[0].Port != nil {
		t.Errorf("%+v", api)
	}
	if got := cidrs(policy.Spec.Egress[2].To); !reflect.DeepEqual(got, []string{"10.80.1.0/24", "192.0.2.7/32", "2001:db8::/32"}) {
		t.Errorf("%v", got)
	}
	// to nowhere would be to everywhere, by whichever port
	empty := networkPolicy(t, map[string]any{"networkPolicy": map[string]any{"apiServer": []string{}}})
	if api := empty.Spec.Egress[1]; len(api.To) != 0 || len(api.Ports) != 2 || api.Ports[0].Port.IntVal != 443 {
		t.Errorf("%+v", api)
	}
	// a name leads wherever DNS says
	named := networkPolicy(t, map[string]any{
		"networkPolicy": map[string]any{}, "upstreams": map[string]any{"allow": []string{"10.80.1.0/24", "*.eks.example"}},
	})
	if len(named.Spec.Egress[2].To) != 0 {
		t.Errorf("%+v", named.Spec.Egress[2])
	}
}

func TestBadParametersOfTheProxyAreRefused(t *testing.T) {
	for _, parameters := range []map[string]any{
		{"replicas": 0},
		{"replicas": "2"},
		{"imagePullPolicy": "Sometimes"},
		{"nodes": map[string]any{"addressType": "Hostname"}},
		{"nodePorts": map[string]any{"first": 0}},
		{"nodePorts": map[string]any{"sni": 65536}},
		{"nodePorts": map[string]any{"first": 31000}},
		{"upstreams": map[string]any{"allow": []string{"api.example:6443"}}},
		{"upstreams": map[string]any{"allow": []string{"https://api.example"}}},
		{"upstreams": map[string]any{"allow": []string{"*"}}},
		{"upstreams": map[string]any{"allow": []string{"10.0.0.0/33"}}},
		{"upstreams": map[string]any{"allow": []string{"a..example"}}},
		{"upstreams": map[string]any{"allow": []string{""}}},
		{"timeouts": map[string]any{"connectSeconds": 0}},
		{"timeouts": map[string]any{"conectSeconds": 3}},
		{"upstreams": map[string]any{"allow": "10.0.0.0/8"}},
		{"maxConnections": -1},
		{"maxConnections": 65536},
		{"externalTrafficPolicy": "local"},
		{"sourceRanges": []string{"10.80.0.0/33"}},
		{"sourceRanges": []string{"hub.example"}},
		{"sourceRanges": "10.80.0.0/24"},
		{"networkPolicy": true},
		{"entry": "ingress"},
		{"healthPort": 8000},
		{"healthPort": 7443},
		{"loadBalancer": map[string]any{"sourceRanges": []string{"10.80.0.1"}}},
		{"loadBalancer": map[string]any{"klass": "c"}},
		{"networkPolicy": map[string]any{"apiServer": []string{"10.80.1.21"}}},
	} {
		if _, _, err := renderProxy(t, parameters); err == nil {
			t.Errorf("%v was accepted", parameters)
		}
	}
}

// The Job's ServiceAccount on the hub is a user like any other in a region.
func TestTheHubsUserMayWriteRoutes(t *testing.T) {
	_, objects, err := renderProxy(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	var binding rbacv1.RoleBinding
	convert(t, objects["RoleBinding/xregion-hub"].Object, &binding)
	want := []rbacv1.Subject{}
	for _, account := range []string{"xregion", "xregion-controller"} {
		want = append(want, rbacv1.Subject{APIGroup: "rbac.authorization.k8s.io", Kind: "User", Name: "system:serviceaccount:vela-system:" + account})
	}
	if !reflect.DeepEqual(binding.Subjects, want) || binding.RoleRef.Name != "xregion-hub" {
		t.Errorf("%+v", binding)
	}
}

// status evaluates what `vela status` shows of a Deployment with this status.
func status(t *testing.T, output map[string]any) *health.StatusResult {
	t.Helper()
	var component v1beta1.ComponentDefinition
	convert(t, loadDefinition(t, "xregion-proxy").Object, &component)
	s := component.Spec.Status
	return must(health.GetStatus(map[string]any{"output": output}, &health.StatusRequest{
		Health: s.HealthPolicy, Custom: s.CustomStatus, Details: s.Details,
	}))(t)
}

func TestStatus(t *testing.T) {
	spec := map[string]any{"replicas": 2, "template": map[string]any{"spec": map[string]any{"containers": []any{map[string]any{"image": "nginx:1"}}}}}
	for name, c := range map[string]struct {
		status  map[string]any
		healthy bool
		message string
	}{
		"no status yet": {nil, false, "0/2 proxies ready, 0 of them up to date"},
		"empty status":  {map[string]any{}, false, "0/2 proxies ready, 0 of them up to date"},
		"starting":      {map[string]any{"observedGeneration": 2, "updatedReplicas": 2}, false, "0/2 proxies ready"},
		"one lost":      {map[string]any{"observedGeneration": 2, "updatedReplicas": 2, "readyReplicas": 1}, false, "1/2 proxies ready"},
		"rolling":       {map[string]any{"observedGeneration": 2, "updatedReplicas": 1, "readyReplicas": 2}, false, "2/2 proxies ready, 1 of them up to date"},
		"stale":         {map[string]any{"observedGeneration": 1, "updatedReplicas": 2, "readyReplicas": 2}, false, "2/2 proxies ready"},
		"ready":         {map[string]any{"observedGeneration": 2, "updatedReplicas": 2, "readyReplicas": 2}, true, "2/2 proxies ready"},
		"surging":       {map[string]any{"observedGeneration": 2, "updatedReplicas": 2, "readyReplicas": 3}, true, "3/2 proxies ready"},
	} {
		output := map[string]any{"metadata": map[string]any{"generation": 2}, "spec": spec}
		if c.status != nil {
			output["status"] = c.status
		}
		got := status(t, output)
		if got.Healthy != c.healthy || got.Message != c.message {
			t.Errorf("%s: %+v", name, got)
		}
		if got.Details["replicas"] != "2" || got.Details["nginx"] != "nginx:1" || len(got.Details) != 3 {
			t.Errorf("%s: %v", name, got.Details)
		}
	}
	if got := status(t, map[string]any{}); got.Healthy || got.Message == "" {
		t.Errorf("without a Deployment: %+v", got)
	}
}

func TestAPodMonitorIsMadeOnRequestOnly(t *testing.T) {
	monitored := func(parameters map[string]any) bool {
		_, objects, err := renderProxy(t, parameters)
		if err != nil {
			t.Fatal(err)
		}
		_, found := objects["PodMonitor/east"]
		return found
	}
	if monitored(map[string]any{}) || !monitored(map[string]any{"podMonitor": true}) {
		t.Error("podMonitor decides nothing")
	}
}

// An example that doesn't render is worse than none.
func TestTheExampleOfARegionRenders(t *testing.T) {
	var app v1beta1.Application
	decode(t, read(t, "../../examples/region.yaml"), &app)
	var parameters map[string]any
	decode(t, string(app.Spec.Components[0].Properties.Raw), &parameters)
	if _, _, err := renderProxy(t, parameters); err != nil {
		t.Fatal(err)
	}
	contains(t, string(app.Spec.Policies[0].Properties.Raw), `"namespace":"vela-system"`)
}

func TestTheExampleOfAMembershipStarts(t *testing.T) {
	var app v1beta1.Application
	decode(t, read(t, "../../examples/membership.yaml"), &app)
	var parameters map[string]any
	decode(t, string(app.Spec.Workflow.Steps[0].Properties.Raw), &parameters)
	hub := cluster(t, jobTemplate(t))
	if r := run(t, hub, parameters); r.phase != "running" {
		t.Fatalf("%+v", r)
	}
	createdJob(t, hub)
}
