package cue_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// monitored are the objects for Prometheus and Grafana that the addon makes with these parameters, by "Kind/name".
func monitored(t *testing.T, monitoring map[string]any) map[string]any {
	t.Helper()
	_, objects, err := renderAddon(t, map[string]any{"monitoring": monitoring})
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]any{}
	for _, name := range []string{"ConfigMap/xregion-dashboard", "PrometheusRule/xregion", "PodMonitor/xregion-controller"} {
		if object, is := objects[name]; is {
			found[name] = object.Object
		}
	}
	return found
}

func TestMonitoringIsMadeOnRequestOnly(t *testing.T) {
	for parameter, name := range map[string]string{
		"dashboard": "ConfigMap/xregion-dashboard", "rules": "PrometheusRule/xregion", "podMonitor": "PodMonitor/xregion-controller",
	} {
		found := monitored(t, map[string]any{parameter: true, "labels": map[string]any{"release": "a"}})
		if len(found) != 1 || found[name] == nil {
			t.Errorf("%s makes %v", parameter, found)
			continue
		}
		labels := at(t, found[name], "metadata", "labels").(map[string]any)
		if labels["release"] != "a" || labels["app.kubernetes.io/name"] != "xregion" || (labels["grafana_dashboard"] == "1") != (parameter == "dashboard") {
			t.Errorf("%s: %v", parameter, labels)
		}
	}
	if found := monitored(t, map[string]any{}); len(found) != 0 {
		t.Errorf("%v", found)
	}
}

func TestWithoutTheControllerNothingIsToldOfIt(t *testing.T) {
	app, objects, err := renderAddon(t, map[string]any{
		"controller": map[string]any{"enabled": false}, "monitoring": map[string]any{"podMonitor": true},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, found := objects["PodMonitor/xregion-controller"]; found || strings.Contains(string(must(json.Marshal(app))(t)), "xregion-monitoring") {
		t.Error("a PodMonitor, or an empty component")
	}
	_, objects, err = renderAddon(t, map[string]any{
		"controller": map[string]any{"enabled": false}, "monitoring": map[string]any{"rules": true},
	})
	if err != nil {
		t.Fatal(err)
	}
	groups := at(t, objects["PrometheusRule/xregion"].Object, "spec", "groups").([]any)
	if len(groups) != 1 || at(t, groups[0], "name") != "xregion-proxy" {
		t.Errorf("%v", groups)
	}
}

func TestTheControllersPodsAreMonitored(t *testing.T) {
	monitor := monitored(t, map[string]any{"podMonitor": true})["PodMonitor/xregion-controller"]
	deployment := renderedController(t, nil)
	for key, value := range at(t, monitor, "spec", "selector", "matchLabels").(map[string]any) {
		if deployment.Spec.Template.Labels[key] != value {
			t.Errorf("pods have no %s=%s", key, value)
		}
	}
	if port := deployment.Spec.Template.Spec.Containers[0].Ports[0]; at(t, monitor, "spec", "podMetricsEndpoints", 0, "port") != port.Name {
		t.Errorf("%v", port)
	}
}

func TestAProxysMetricsSayTheirRegion(t *testing.T) {
	deployment, objects, err := renderProxy(t, map[string]any{"podMonitor": true, "rules": true, "monitoringLabels": map[string]any{"release": "a"}})
	if err != nil {
		t.Fatal(err)
	}
	monitor, rules := objects["PodMonitor/east"], objects["PrometheusRule/east"]
	endpoint := at(t, monitor.Object, "spec", "podMetricsEndpoints", 0)
	want := []any{map[string]any{"targetLabel": "region", "replacement": "proxy-east"}}
	if got := at(t, endpoint, "relabelings"); !reflect.DeepEqual(got, want) || at(t, endpoint, "port") != deployment.Spec.Template.Spec.Containers[0].Ports[0].Name {
		t.Errorf("%v", endpoint)
	}
	if monitor.GetLabels()["release"] != "a" || rules.GetLabels()["release"] != "a" {
		t.Errorf("%v %v", monitor.GetLabels(), rules.GetLabels())
	}
	if _, others, err := renderProxy(t, nil); err != nil || others["PodMonitor/east"] != nil || others["PrometheusRule/east"] != nil {
		t.Errorf("made unasked: %v", err)
	}
}

// alerts are the rules of a PrometheusRule, by name.
func alerts(t *testing.T, rule any) map[string]any {
	t.Helper()
	found := map[string]any{}
	for _, group := range at(t, rule, "spec", "groups").([]any) {
		for _, alert := range at(t, group, "rules").([]any) {
			found[at(t, alert, "alert").(string)] = alert
		}
	}
	return found
}

func everyAlert(t *testing.T) map[string]any {
	t.Helper()
	_, objects, err := renderProxy(t, map[string]any{"rules": true})
	if err != nil {
		t.Fatal(err)
	}
	found := alerts(t, monitored(t, map[string]any{"rules": true})["PrometheusRule/xregion"])
	for name, alert := range alerts(t, objects["PrometheusRule/east"].Object) {
		if other, both := found[name]; both && !reflect.DeepEqual(alert, other) {
			t.Errorf("%s is two", name)
		}
		found[name] = alert
	}
	return found
}

func TestEveryAlertIsExplained(t *testing.T) {
	docs := read(t, "../../docs/monitoring.md")
	for name, alert := range everyAlert(t) {
		if !strings.Contains(docs, "\n### "+name+"\n") {
			t.Errorf("docs/monitoring.md does not explain %s", name)
		}
		if pointer := at(t, alert, "annotations", "runbook"); pointer != "docs/monitoring.md#"+strings.ToLower(name) {
			t.Errorf("%s: %v", name, pointer)
		}
	}
}

// the dashboard as Grafana reads it.
func theDashboard(t *testing.T) map[string]any {
	t.Helper()
	var dashboard map[string]any
	text := at(t, monitored(t, map[string]any{"dashboard": true})["ConfigMap/xregion-dashboard"], "data", "xregion.json").(string)
	if err := json.Unmarshal([]byte(text), &dashboard); err != nil {
		t.Fatal(err)
	}
	return dashboard
}

func TestPanelsFillTheDashboardWithoutOverlap(t *testing.T) {
	taken, ids := map[[2]int]bool{}, map[any]bool{}
	rows := 0
	for _, panel := range theDashboard(t)["panels"].([]any) {
		if id := at(t, panel, "id"); ids[id] {
			t.Errorf("two panels %v", id)
		} else {
			ids[id] = true
		}
		number := func(key string) int { return int(at(t, panel, "gridPos", key).(float64)) }
		rows = max(rows, number("y")+number("h"))
		for x := number("x"); x < number("x")+number("w"); x++ {
			for y := number("y"); y < number("y")+number("h"); y++ {
				if taken[[2]int{x, y}] {
					t.Errorf("%v lies over another", at(t, panel, "title"))
				}
				taken[[2]int{x, y}] = true
			}
		}
	}
	if len(taken) != 24*rows || len(ids) < 15 {
		t.Errorf("%d panels take %d of %d", len(ids), len(taken), 24*rows)
	}
}

func TestEveryVariableOfTheDashboardIsThere(t *testing.T) {
	dashboard := theDashboard(t)
	variables := map[string]bool{"__all": true, "__range": true, "__rate_interval": true}
	for _, variable := range at(t, dashboard, "templating", "list").([]any) {
		variables[at(t, variable, "name").(string)] = true
	}
	used := regexp.MustCompile(`\$\{?([a-z_]+)`).FindAllStringSubmatch(string(must(json.Marshal(dashboard))(t)), -1)
	if len(used) < 20 {
		t.Errorf("%v", used)
	}
	for _, name := range used {
		if !variables[name[1]] {
			t.Errorf("no variable %s", name[1])
		}
	}
}

// What agent and controller expose is compared with the same tables by tests of theirs.
func TestDashboardAndAlertsAskForMetricsThatAreThere(t *testing.T) {
	known := map[string]bool{"xregion_controller_credentials_expire_timestamp_seconds": true}
	for _, line := range strings.Split(read(t, "../../docs/monitoring.md"), "\n") {
		if cells := strings.Split(line, "|"); len(cells) == 4 {
			for _, name := range regexp.MustCompile("`(xregion_[a-z_]+)").FindAllStringSubmatch(cells[1], -1) {
				known[name[1]] = true
			}
		}
	}
	asked := regexp.MustCompile(`xregion_[a-z_]+`).FindAllString(string(must(json.Marshal([]any{theDashboard(t), everyAlert(t)}))(t)), -1)
	if len(known) < 15 || len(asked) < 30 {
		t.Errorf("%v %v", known, asked)
	}
	for _, name := range asked {
		if !known[strings.TrimSuffix(name, "_bucket")] {
			t.Errorf("docs/monitoring.md has no metric %s", name)
		}
	}
}

// written is a file of groups of rules, as Prometheus itself reads them.
func written(t *testing.T, path string, groups any) string {
	t.Helper()
	if err := os.WriteFile(path, must(yaml.Marshal(map[string]any{"groups": groups}))(t), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAlertsFireWhenTheyShould(t *testing.T) {
	if _, err := exec.LookPath("promtool"); err != nil {
		t.Fatal("this test runs the real promtool; install it with: apt-get install prometheus")
	}
	promtool := func(args ...string) {
		t.Helper()
		if output, err := exec.Command("promtool", args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, output)
		}
	}
	directory := t.TempDir()
	_, objects, err := renderProxy(t, map[string]any{"rules": true})
	if err != nil {
		t.Fatal(err)
	}
	for name, rule := range map[string]any{
		"hub.yaml": monitored(t, map[string]any{"rules": true})["PrometheusRule/xregion"], "region.yaml": objects["PrometheusRule/east"].Object,
	} {
		promtool("check", "rules", written(t, filepath.Join(directory, name), at(t, rule, "spec", "groups")))
	}

	cases := read(t, "alerts.yaml")
	rules := []any{}
	for name, alert := range everyAlert(t) {
		rules = append(rules, alert)
		if !strings.Contains(cases, "alertname: "+name+"\n") {
			t.Errorf("alerts.yaml does not test %s", name)
		}
	}
	written(t, filepath.Join(directory, "all.yaml"), []any{map[string]any{"name": "all", "rules": rules}})
	copied := filepath.Join(directory, "alerts.yaml")
	if err := os.WriteFile(copied, []byte(cases), 0o600); err != nil {
		t.Fatal(err)
	}
	promtool("test", "rules", copied)
}
