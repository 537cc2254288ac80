package cue_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/cuecontext"
	"cuelang.org/go/cue/format"
	"cuelang.org/go/cue/parser"
	"cuelang.org/go/cue/token"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	rbacv1 "k8s.io/api/rbac/v1"
)

func TestTheAddonIsPinnedToTheHub(t *testing.T) {
	app, objects, err := renderAddon(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	if app.Name != "addon-xregion" || app.Namespace != "vela-system" {
		t.Errorf("%s/%s", app.Namespace, app.Name)
	}
	if string(app.Spec.Policies[0].Properties.Raw) != `{"clusters":["local"]}` {
		t.Errorf("%s", app.Spec.Policies[0].Properties.Raw)
	}
	for _, name := range []string{
		"ServiceAccount/xregion", "Role/xregion", "RoleBinding/xregion", "Role/xregion-author", "ClusterRole/xregion", "ClusterRoleBinding/xregion", "ConfigMap/xregion-job",
		"ValidatingAdmissionPolicy/xregion-regions", "ValidatingAdmissionPolicyBinding/xregion-regions",
		"Namespace/xregion-system", "Role/xregion-system/xregion", "RoleBinding/xregion-system/xregion",
		"Deployment/xregion-controller", "ServiceAccount/xregion-controller", "Role/xregion-controller", "RoleBinding/xregion-controller",
	} {
		if _, found := objects[name]; !found {
			t.Errorf("no %s", name)
		}
	}
}

func TestWhatHostAliasesLeadToOutlivesTheAddon(t *testing.T) {
	for _, want := range []string{"services", "nodes"} {
		app, objects, err := renderAddon(t, map[string]any{"hostAliases": want})
		if err != nil {
			t.Fatal(err)
		}
		got := at(t, objects["ConfigMap/xregion-job"].Object, "data", "hostAliases")
		if got != want {
			t.Errorf("%v", got)
		}
		var kept struct {
			Rules []struct {
				Selector struct{ ComponentNames []string }
				Strategy string
			}
		}
		decode(t, string(app.Spec.Policies[1].Properties.Raw), &kept)
		rule := kept.Rules[0]
		if app.Spec.Policies[1].Type != "garbage-collect" || rule.Strategy != "never" {
			t.Errorf("%+v", app.Spec.Policies[1])
		}
		if len(rule.Selector.ComponentNames) != 1 || rule.Selector.ComponentNames[0] != "xregion-entries" {
			t.Errorf("%v", rule.Selector)
		}
	}
}

func TestAMisspeltParameterIsRefused(t *testing.T) {
	for _, parameters := range []map[string]any{
		{"imagePulPolicy": "Always"},
		{"imagePullPolicy": "Sometimes"},
		{"resources": map[string]any{"limit": map[string]any{}}},
		{"regions": "proxy-east"},
		{"hostAliases": "pods"},
		{"controller": map[string]any{"enable": false}},
		{"monitoring": map[string]any{"dashboards": true}},
		{"controller": map[string]any{"resources": map[string]any{"limits": map[string]any{"mem": "1Gi"}}}},
	} {
		if _, _, err := renderAddon(t, parameters); err == nil {
			t.Errorf("%v was accepted", parameters)
		}
	}
}

func renderedJob(t *testing.T, parameters map[string]any) batchv1.Job {
	t.Helper()
	_, objects, err := renderAddon(t, parameters)
	if err != nil {
		t.Fatal(err)
	}
	var job batchv1.Job
	decodeStrictly(t, at(t, objects["ConfigMap/xregion-job"].Object, "data", "job.json").(string), &job)
	return job
}

func TestTheJobIsRestrictedAndRunsOnce(t *testing.T) {
	job := renderedJob(t, nil)
	pod := job.Spec.Template.Spec
	container := pod.Containers[0]
	if *job.Spec.BackoffLimit != 0 || job.Spec.TTLSecondsAfterFinished != nil || pod.RestartPolicy != "Never" {
		t.Errorf("%+v", job.Spec)
	}
	if pod.ServiceAccountName != "xregion" || pod.AutomountServiceAccountToken != nil {
		t.Errorf("account %q", pod.ServiceAccountName)
	}
	if !*pod.SecurityContext.RunAsNonRoot || pod.SecurityContext.SeccompProfile.Type != "RuntimeDefault" {
		t.Errorf("%+v", pod.SecurityContext)
	}
	if *container.SecurityContext.AllowPrivilegeEscalation || !*container.SecurityContext.ReadOnlyRootFilesystem || container.SecurityContext.Capabilities.Drop[0] != "ALL" {
		t.Errorf("%+v", container.SecurityContext)
	}
	if pod.Volumes[0].EmptyDir.Medium != "Memory" || container.VolumeMounts[0].MountPath != "/run/xregion" {
		t.Errorf("%+v", pod.Volumes)
	}
	env := map[string]string{}
	for _, e := range container.Env {
		env[e.Name] = e.Value
		if e.ValueFrom != nil {
			env[e.Name] = e.ValueFrom.FieldRef.FieldPath
		}
	}
	want := map[string]string{
		"XREGION_JOB_NAME": "metadata.labels['batch.kubernetes.io/job-name']",
		"XREGION_JOB_UID":  "metadata.labels['batch.kubernetes.io/controller-uid']",
		"HOME":             "/run/xregion", "VELA_HOME": "/run/xregion", "TMPDIR": "/run/xregion",
	}
	if !reflect.DeepEqual(env, want) {
		t.Errorf("env %v", env)
	}
}

func TestTheImageFollowsTheVersion(t *testing.T) {
	var metadata struct{ Name, Version string }
	decode(t, read(t, "../../metadata.yaml"), &metadata)
	image := "xregion/xregion:v" + metadata.Version
	if got := renderedJob(t, nil).Spec.Template.Spec.Containers[0].Image; got != image {
		t.Errorf("Job: %s", got)
	}
	for _, name := range []string{"xregion-proxy", "xregion-member", "xregion-join", "xregion-leave"} {
		if got := loadDefinition(t, name).Object["spec"].(map[string]any)["version"]; got != metadata.Version {
			t.Errorf("%s: version %v", name, got)
		}
	}
	contains(t, templateOf(t, loadDefinition(t, "xregion-proxy")), `"`+image+`"`)
}

func TestParametersReachTheJob(t *testing.T) {
	job := renderedJob(t, map[string]any{
		"image": "mirror/x:1", "imagePullPolicy": "Always", "imagePullSecrets": []string{"pull"},
		"resources": map[string]any{"limits": map[string]any{"memory": "1Gi", "cpu": "1"}},
	})
	pod := job.Spec.Template.Spec
	container := pod.Containers[0]
	if container.Image != "mirror/x:1" || container.ImagePullPolicy != "Always" || pod.ImagePullSecrets[0].Name != "pull" {
		t.Errorf("%+v", pod)
	}
	if container.Resources.Limits.Memory().String() != "1Gi" || container.Resources.Requests.Memory().String() != "64Mi" {
		t.Errorf("%+v", container.Resources)
	}
}

// rules of a rendered Role or ClusterRole.
func rules(t *testing.T, parameters map[string]any, name string) []rbacv1.PolicyRule {
	t.Helper()
	_, objects, err := renderAddon(t, parameters)
	if err != nil {
		t.Fatal(err)
	}
	var role rbacv1.ClusterRole
	decode(t, string(must(json.Marshal(objects[name].Object))(t)), &role)
	return role.Rules
}

func TestRegionsBoundWhereJoinsAndTheControllerMayWrite(t *testing.T) {
	writing := func(regions any) []string {
		for _, rule := range rules(t, map[string]any{"regions": regions}, "ClusterRole/xregion") {
			if rule.Resources[0] == "clustergateways/proxy" && rule.Verbs[0] == "create" {
				return rule.ResourceNames
			}
		}
		t.Fatal("no rule")
		return nil
	}
	if got := writing([]string{"proxy-east", "proxy-west"}); !reflect.DeepEqual(got, []string{"proxy-east", "proxy-west"}) {
		t.Errorf("%v", got)
	}
	if got := writing([]string{}); got != nil {
		t.Errorf("%v", got)
	}
}

func renderedController(t *testing.T, parameters map[string]any) appsv1.Deployment {
	t.Helper()
	_, objects, err := renderAddon(t, parameters)
	if err != nil {
		t.Fatal(err)
	}
	var deployment appsv1.Deployment
	decodeStrictly(t, string(must(json.Marshal(objects["Deployment/xregion-controller"].Object))(t)), &deployment)
	return deployment
}

func TestTheControllerIsRestrictedAndProbed(t *testing.T) {
	deployment := renderedController(t, nil)
	pod := deployment.Spec.Template.Spec
	container := pod.Containers[0]
	if *deployment.Spec.Replicas != 1 || !reflect.DeepEqual(deployment.Spec.Selector.MatchLabels, deployment.Spec.Template.Labels) {
		t.Errorf("%+v", deployment.Spec)
	}
	// the proxies' and the Job's pods are selected by other labels
	if deployment.Spec.Template.Labels["app.kubernetes.io/component"] != "controller" {
		t.Errorf("%+v", deployment.Spec.Template.Labels)
	}
	if pod.ServiceAccountName != "xregion-controller" || !reflect.DeepEqual(container.Args, []string{"controller"}) {
		t.Errorf("%+v", pod)
	}
	if !*pod.SecurityContext.RunAsNonRoot || pod.SecurityContext.SeccompProfile.Type != "RuntimeDefault" {
		t.Errorf("%+v", pod.SecurityContext)
	}
	if *container.SecurityContext.AllowPrivilegeEscalation || !*container.SecurityContext.ReadOnlyRootFilesystem || container.SecurityContext.Capabilities.Drop[0] != "ALL" {
		t.Errorf("%+v", container.SecurityContext)
	}
	if container.LivenessProbe.HTTPGet.Path != "/livez" || container.ReadinessProbe.HTTPGet.Path != "/readyz" || container.Ports[0].ContainerPort != 7081 {
		t.Errorf("%+v", container)
	}
	if container.Resources.Requests.Cpu().String() != "20m" || container.Resources.Requests.Memory().String() != "32Mi" || container.Resources.Limits.Memory().String() != "512Mi" {
		t.Errorf("%+v", container.Resources)
	}
	// as in the Job, where vela runs, too
	job := renderedJob(t, nil).Spec.Template.Spec
	if !reflect.DeepEqual(container.Env, job.Containers[0].Env[2:]) || len(container.Env) != 3 || !reflect.DeepEqual(container.VolumeMounts, job.Containers[0].VolumeMounts) ||
		!reflect.DeepEqual(pod.Volumes, job.Volumes) {
		t.Errorf("%+v %+v", container, pod.Volumes)
	}
}

func TestParametersReachTheController(t *testing.T) {
	deployment := renderedController(t, map[string]any{
		"image": "mirror/x:1", "imagePullPolicy": "Always", "imagePullSecrets": []string{"pull"},
		"controller": map[string]any{"replicas": 2, "resources": map[string]any{"limits": map[string]any{"memory": "1Gi"}}},
	})
	pod := deployment.Spec.Template.Spec
	container := pod.Containers[0]
	if container.Image != "mirror/x:1" || container.ImagePullPolicy != "Always" || pod.ImagePullSecrets[0].Name != "pull" {
		t.Errorf("%+v", pod)
	}
	if *deployment.Spec.Replicas != 2 || container.Resources.Limits.Memory().String() != "1Gi" || container.Resources.Requests.Memory().String() != "32Mi" {
		t.Errorf("%+v", deployment.Spec)
	}
}

func TestTheControllerCanBeLeftOut(t *testing.T) {
	app, objects, err := renderAddon(t, map[string]any{"controller": map[string]any{"enabled": false}})
	if err != nil {
		t.Fatal(err)
	}
	for name := range objects {
		if strings.Contains(name, "controller") {
			t.Errorf("%s is there", name)
		}
	}
	for _, component := range app.Spec.Components {
		if component.Name == "xregion-controller" {
			t.Errorf("an empty component")
		}
	}
}

func TestJoinsHaveTheSameRightsInAJobAndInTheController(t *testing.T) {
	for _, enabled := range []bool{true, false} {
		_, objects, err := renderAddon(t, map[string]any{"controller": map[string]any{"enabled": enabled}})
		if err != nil {
			t.Fatal(err)
		}
		want := []rbacv1.Subject{{Kind: "ServiceAccount", Name: "xregion", Namespace: "vela-system"}}
		if enabled {
			want = append(want, rbacv1.Subject{Kind: "ServiceAccount", Name: "xregion-controller", Namespace: "vela-system"})
		}
		for _, name := range []string{"RoleBinding/xregion", "ClusterRoleBinding/xregion"} {
			var binding rbacv1.ClusterRoleBinding
			decode(t, string(must(json.Marshal(objects[name].Object))(t)), &binding)
			if !reflect.DeepEqual(binding.Subjects, want) || binding.RoleRef.Name != "xregion" {
				t.Errorf("%s: %+v", name, binding)
			}
		}
	}
}

func TestNoRuleHasAWildcardOrAVerbThatNobodyUses(t *testing.T) {
	for _, name := range []string{"Role/xregion", "ClusterRole/xregion", "Role/xregion-author", "Role/xregion-controller", "Role/xregion-system/xregion"} {
		for _, rule := range rules(t, nil, name) {
			for _, value := range append(append(append([]string{}, rule.Verbs...), rule.Resources...), rule.APIGroups...) {
				// on the hub all is read anew each time: by xregion, by vela, and by steps
				if value == "*" || value == "watch" || value == "deletecollection" {
					t.Errorf("%s: %v", name, rule)
				}
			}
		}
	}
}

func sources(t *testing.T) []string {
	t.Helper()
	var files []string
	for _, pattern := range []string{"../../definitions/*.cue", "../../addon/*.cue", "../../addon/resources/*.cue", "../../addon/views/*.cue"} {
		found := must(filepath.Glob(pattern))(t)
		if len(found) == 0 {
			t.Fatalf("no %s", pattern)
		}
		files = append(files, found...)
	}
	return files
}

func TestEveryRuleHasAReason(t *testing.T) {
	count := 0
	for _, path := range sources(t) {
		file := must(parser.ParseFile(path, read(t, path), parser.ParseComments))(t)
		ast.Walk(file, func(node ast.Node) bool {
			field, ok := node.(*ast.Field)
			if !ok {
				return true
			}
			list, ok := field.Value.(*ast.ListLit)
			if label, _, _ := ast.LabelName(field.Label); !ok || label != "rules" {
				return true
			}
			for _, rule := range list.Elts {
				count++
				if !strings.HasPrefix(comment(rule), "reason: ") {
					t.Errorf("%s: a rule without a reason", rule.Pos())
				}
			}
			return true
		}, nil)
	}
	if count < 22 {
		t.Errorf("only %d rules found", count)
	}
}

// parameters calls visit for each named field of a parameter, and of the definitions parameters refer to.
func parameters(t *testing.T, visit func(field *ast.Field, name string)) {
	t.Helper()
	count := 0
	for _, path := range sources(t) {
		file := must(parser.ParseFile(path, read(t, path), parser.ParseComments))(t)
		ast.Walk(file, func(node ast.Node) bool {
			field, ok := node.(*ast.Field)
			if !ok {
				return true
			}
			if label, _, _ := ast.LabelName(field.Label); label != "parameter" && !strings.HasPrefix(label, "#") {
				return true
			}
			ast.Walk(field.Value, func(node ast.Node) bool {
				inner, ok := node.(*ast.Field)
				if !ok {
					return true
				}
				// [string]: string has no name to explain
				if _, pattern := inner.Label.(*ast.ListLit); pattern {
					return false
				}
				count++
				name, _, _ := ast.LabelName(inner.Label)
				visit(inner, name)
				return true
			}, nil)
			return false
		}, nil)
	}
	if count < 40 {
		t.Errorf("only %d parameters found", count)
	}
}

func TestEveryParameterHasAUsage(t *testing.T) {
	parameters(t, func(field *ast.Field, name string) {
		if !strings.HasPrefix(comment(field), "+usage=") {
			t.Errorf("%s: %s has no +usage", field.Pos(), name)
		}
	})
}

// `vela show` calls a field required that is neither optional nor has a default of its own.
func TestOnlyWhatMustBeGivenIsRequired(t *testing.T) {
	required := map[string]bool{}
	parameters(t, func(field *ast.Field, name string) {
		defaulted := false
		ast.Walk(field.Value, func(node ast.Node) bool {
			unary, ok := node.(*ast.UnaryExpr)
			defaulted = defaulted || ok && unary.Op == token.MUL
			_, structure := node.(*ast.StructLit)
			return !structure
		}, nil)
		if field.Constraint == token.ILLEGAL && !defaulted {
			required[name] = true
		}
	})
	if want := map[string]bool{"cluster": true, "region": true, "kubeconfig": true, "secret": true}; !reflect.DeepEqual(required, want) {
		t.Errorf("required: %v", required)
	}
}

func comment(node ast.Node) string {
	for _, group := range ast.Comments(node) {
		return strings.TrimSpace(strings.TrimPrefix(group.List[0].Text, "//"))
	}
	return ""
}

func TestSourcesAreFormatted(t *testing.T) {
	for _, path := range sources(t) {
		text := read(t, path)
		if string(must(format.Source([]byte(text)))(t)) != text {
			t.Errorf("%s is not as `cue fmt` has it", path)
		}
	}
}

var notesPath = cue.ParsePath("notes")

func TestNotesAreText(t *testing.T) {
	pkg := installPackage(t)
	text := pkg.Parameters + "\ncontext: metadata: version: \"1.2.3\"\nparameter: {}\n" + pkg.Notes.Data
	notes := must(cuecontext.New().CompileString(text).LookupPath(notesPath).String())(t)
	contains(t, notes, "xregion 1.2.3 is enabled")
	contains(t, notes, "xregion-join")
}

func TestNothingElseIsPacked(t *testing.T) {
	want := map[string]bool{}
	for _, name := range []string{
		"metadata.yaml", "README.md", "template.cue", "parameter.cue", "NOTES.cue",
		"resources/controller.cue", "resources/dashboard.cue", "resources/entries.cue", "resources/guard.cue", "resources/job.cue", "resources/monitoring.cue", "resources/rbac.cue", "definitions/xregion-proxy.cue", "definitions/xregion-join.cue", "definitions/xregion-leave.cue", "definitions/xregion-member.cue",
		"views/xregion-routes.cue",
	} {
		want[name] = true
	}
	err := filepath.WalkDir(staged, func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			if name, _ := filepath.Rel(staged, path); !want[name] {
				t.Errorf("%s", name)
			} else {
				delete(want, name)
			}
		}
		return err
	})
	if err != nil || len(want) > 0 {
		t.Errorf("missing %v: %v", want, err)
	}
}
