package cue_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"testing"

	monitor "github.com/kubevela/pkg/monitor/context"
	"github.com/kubevela/pkg/util/singleton"
	workflow "github.com/kubevela/workflow/api/v1alpha1"
	wfcontext "github.com/kubevela/workflow/pkg/context"
	"github.com/kubevela/workflow/pkg/cue/process"
	"github.com/kubevela/workflow/pkg/tasks/custom"
	wftypes "github.com/kubevela/workflow/pkg/types"
	"github.com/oam-dev/kubevela/pkg/workflow/providers"
	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgo "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

const session = "abcde12345"

func scheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	s := runtime.NewScheme()
	if err := clientgo.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	return s
}

type result struct {
	phase, message string
	waiting        bool
	outputs        map[string]string
}

var outputs = []string{"endpoint", "host", "alias", "nodePort", "nodeIPs", "endpoints", "plan"}

// run evaluates the step once, as the workflow engine does, and reads its outputs as later steps would.
func run(t *testing.T, hub client.Client, parameter map[string]any) result {
	t.Helper()
	return runStep(t, hub, "xregion-join", parameter)
}

func runStep(t *testing.T, hub client.Client, definition string, parameter map[string]any) result {
	t.Helper()
	ctx := context.Background()
	compiler := providers.DefaultCompiler.Get()
	template := templateOf(t, loadDefinition(t, definition))
	load := func(context.Context, string) (string, error) { return template, nil }
	data := process.NewContext(process.ContextData{Name: "join-business-a", Namespace: "default"})
	generate := must(custom.NewTaskLoader(load, 0, data, compiler).GetTaskGenerator(ctx, definition))(t)

	step := workflow.WorkflowStep{WorkflowStepBase: workflow.WorkflowStepBase{
		Name:       "join",
		Type:       definition,
		Properties: &runtime.RawExtension{Raw: must(json.Marshal(parameter))(t)},
	}}
	for _, name := range outputs {
		step.Outputs = append(step.Outputs, workflow.OutputItem{Name: name, ValueFrom: "output." + name})
	}
	task := must(generate(step, &wftypes.TaskGeneratorOptions{ID: session}))(t)
	wfctx := must(wfcontext.NewContext(ctx, "default", "join-business-a-"+strings.ToLower(t.Name()[:4]), nil))(t)
	status, operation, err := task.Run(wfctx, &wftypes.TaskRunOptions{
		GetTracer: func(id string, _ workflow.WorkflowStep) monitor.Context { return monitor.NewTraceContext(ctx, id) },
	})
	if err != nil {
		t.Fatal(err)
	}
	r := result{phase: string(status.Phase), message: status.Message, waiting: operation.Waiting, outputs: map[string]string{}}
	for _, name := range outputs {
		if value, err := wfctx.GetVar(name); err == nil {
			r.outputs[name] = string(must(value.MarshalJSON())(t))
		}
	}
	return r
}

var parameter = map[string]any{
	"cluster": "business-a", "region": "proxy-east", "kubeconfig": map[string]any{"secret": "business-a-kubeconfig"},
}

func with(key string, value any) map[string]any {
	out := map[string]any{key: value}
	for k, v := range parameter {
		if k != key {
			out[k] = v
		}
	}
	return out
}

// jobName is what the step calls its Job; pinned, as a changed name would start running joins again.
const jobName = "xregion-join-842a68d0-" + session

func configMap(name string, data map[string]any) map[string]any {
	return map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name, "namespace": "vela-system"}, "data": data}
}

func jobTemplate(t *testing.T) map[string]any {
	t.Helper()
	_, objects, err := renderAddon(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	return objects["ConfigMap/xregion-job"].Object
}

func job(status map[string]any) map[string]any {
	return map[string]any{"apiVersion": "batch/v1", "kind": "Job", "metadata": map[string]any{"name": jobName, "namespace": "vela-system"}, "status": status}
}

func failedJob(reason string) map[string]any {
	return job(map[string]any{"failed": 1, "conditions": []any{
		map[string]any{"type": "FailureTarget", "status": "True", "reason": "other"},
		map[string]any{"type": "Failed", "status": "True", "reason": reason},
	}})
}

func pod(session, message string) map[string]any {
	return map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": "p-" + session, "namespace": "vela-system", "labels": map[string]any{"xregion.oam.dev/session": session}},
		"status": map[string]any{"containerStatuses": []any{map[string]any{
			"name": "xregion", "state": map[string]any{"terminated": map[string]any{"exitCode": 3, "message": message}},
		}}},
	}
}

func createdJob(t *testing.T, hub client.Client) *batchv1.Job {
	t.Helper()
	var jobs batchv1.JobList
	if err := hub.List(context.Background(), &jobs); err != nil {
		t.Fatal(err)
	}
	if len(jobs.Items) != 1 {
		t.Fatalf("%d Jobs", len(jobs.Items))
	}
	return &jobs.Items[0]
}

var nothing = map[string]string{"endpoint": `""`, "host": `""`, "alias": `""`, "nodePort": `""`, "nodeIPs": `""`, "endpoints": `""`, "plan": `""`}

func TestWithoutTheAddonTheStepSaysSo(t *testing.T) {
	r := run(t, cluster(t), parameter)
	if r.phase != "failed" || r.waiting {
		t.Errorf("%+v", r)
	}
	contains(t, r.message, "the addon xregion is not enabled")
	contains(t, r.message, "vela addon enable xregion")
	if !reflect.DeepEqual(r.outputs, nothing) {
		t.Errorf("outputs %v", r.outputs)
	}
}

func TestATemplateWithoutAJobIsNamed(t *testing.T) {
	r := run(t, cluster(t, configMap("xregion-job", map[string]any{"other": "x"})), parameter)
	if r.phase != "failed" {
		t.Errorf("%+v", r)
	}
	contains(t, r.message, "has no job.json")
}

func TestTheFirstEvaluationCreatesTheJob(t *testing.T) {
	hub := cluster(t, jobTemplate(t))
	r := run(t, hub, parameter)
	if r.phase != "running" || !r.waiting {
		t.Errorf("%+v", r)
	}
	contains(t, r.message, "starting Job vela-system/"+jobName)

	j := createdJob(t, hub)
	if j.Name != jobName || j.Namespace != "vela-system" {
		t.Errorf("%s/%s", j.Namespace, j.Name)
	}
	if !reflect.DeepEqual(j.Finalizers, []string{"foregroundDeletion"}) {
		t.Errorf("finalizers %v", j.Finalizers)
	}
	if *j.Spec.BackoffLimit != 0 || j.Spec.TTLSecondsAfterFinished != nil || *j.Spec.ActiveDeadlineSeconds != 630 {
		t.Errorf("%+v", j.Spec)
	}
	for _, labels := range []map[string]string{j.Labels, j.Spec.Template.Labels} {
		if labels["xregion.oam.dev/session"] != session || labels["xregion.oam.dev/kind"] != "job" {
			t.Errorf("labels %v", labels)
		}
	}
	want := []string{
		"join", "--here", "--timeout=10m", "--region=proxy-east", "--secret=business-a-kubeconfig", "--secret-key=kubeconfig", "--", "business-a",
	}
	if args := j.Spec.Template.Spec.Containers[0].Args; !reflect.DeepEqual(args, want) {
		t.Errorf("args %v", args)
	}
}

func TestEveryParameterReachesTheJob(t *testing.T) {
	hub := cluster(t, jobTemplate(t))
	run(t, hub, map[string]any{
		"cluster": "-x", "region": "-r", "kubeconfig": map[string]any{"secret": "s", "key": "k", "context": "c"},
		"labels":   map[string]any{"region": "east", "example.com/tier": "1"},
		"nodePort": 30007, "mode": "sni", "gateway": "g", "allowSecondName": true, "timeout": "90s", "sourceRanges": []string{"10.0.0.0/8", "192.0.2.1"},
		"maxConnections": 20,
	})
	j := createdJob(t, hub)
	want := []string{
		"join", "--here", "--region=-r", "--secret=s", "--secret-key=k", "--context=c", "--timeout=90s",
		"--label=region=east", "--label=example.com/tier=1", "--node-port=30007", "--gateway=g", "--allow-second-name",
		"--source-range=10.0.0.0/8", "--source-range=192.0.2.1", "--max-connections=20", "--mode=sni", "--", "-x",
	}
	args := j.Spec.Template.Spec.Containers[0].Args
	if len(args) != len(want) {
		t.Fatalf("args %v", args)
	}
	for _, arg := range want {
		if !strings.Contains(fmt.Sprint(args), " "+arg) && args[0] != arg {
			t.Errorf("no %s in %v", arg, args)
		}
	}
	if *j.Spec.ActiveDeadlineSeconds != 120 {
		t.Errorf("deadline %d", *j.Spec.ActiveDeadlineSeconds)
	}
}

func TestTimeouts(t *testing.T) {
	for timeout, seconds := range map[string]int64{"1s": 31, "45s": 75, "10m": 630, "2h": 7230} {
		hub := cluster(t, jobTemplate(t))
		run(t, hub, with("timeout", timeout))
		if got := *createdJob(t, hub).Spec.ActiveDeadlineSeconds; got != seconds {
			t.Errorf("%s: %d", timeout, got)
		}
	}
	for _, timeout := range []string{"", "10", "m", "0s", "1d", "-1s", "1m30s", " 1m"} {
		hub := cluster(t, jobTemplate(t))
		r := run(t, hub, with("timeout", timeout))
		if r.phase != "failed" || r.waiting || !reflect.DeepEqual(r.outputs, nothing) {
			t.Errorf("%q: %+v", timeout, r)
		}
		contains(t, r.message, "give a number and s, m or h")
	}
}

// A running Job must survive an upgrade or a loss of the addon: its pod template can't be changed any more.
func TestARunningJobIsLeftAlone(t *testing.T) {
	for name, more := range map[string][]map[string]any{
		"addon gone":     {},
		"addon upgraded": {configMap("xregion-job", map[string]any{"job.json": `{"apiVersion":"batch/v1","kind":"Job","spec":{"template":{"spec":{"containers":[{"image":"new"}]}}}}`})},
	} {
		hub := cluster(t, append(more, job(map[string]any{"active": 1}))...)
		before := createdJob(t, hub).ResourceVersion
		r := run(t, hub, parameter)
		if r.phase != "running" || createdJob(t, hub).ResourceVersion != before {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// An API server that is away for a moment must not end a join, nor start a second one.
func TestUnreadableIsWaitedFor(t *testing.T) {
	for _, kind := range []string{"Job", "ConfigMap"} {
		hub := interceptor.NewClient(cluster(t, jobTemplate(t)).(client.WithWatch), interceptor.Funcs{
			Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, object client.Object, options ...client.GetOption) error {
				if object.GetObjectKind().GroupVersionKind().Kind == kind {
					return errors.New("connection refused")
				}
				return c.Get(ctx, key, object, options...)
			},
		})
		singleton.KubeClient.Set(hub)
		r := run(t, hub, parameter)
		if r.phase != "running" || !r.waiting {
			t.Errorf("%s: %+v", kind, r)
		}
		contains(t, r.message, "reading "+kind)
		contains(t, r.message, "connection refused")
		var jobs batchv1.JobList
		if err := hub.List(context.Background(), &jobs); err != nil || len(jobs.Items) != 0 {
			t.Errorf("%s: %d Jobs, %v", kind, len(jobs.Items), err)
		}
	}
}

func TestAPodThatDoesNotStartShows(t *testing.T) {
	waiting := func(state, condition map[string]any) map[string]any {
		p := pod(session, "")
		p["status"] = map[string]any{"conditions": []any{condition}}
		if state != nil {
			p["status"].(map[string]any)["containerStatuses"] = []any{map[string]any{"name": "xregion", "state": map[string]any{"waiting": state}}}
		}
		return p
	}
	scheduled := map[string]any{"type": "PodScheduled", "status": "True"}
	start := "starting Job vela-system/" + jobName
	for want, p := range map[string]map[string]any{
		start: waiting(map[string]any{"reason": "ContainerCreating"}, scheduled),
		start + ": ImagePullBackOff: Back-off pulling image x": waiting(map[string]any{"reason": "ImagePullBackOff", "message": "Back-off pulling image x"}, scheduled),
		start + ": 0/1 nodes are available": waiting(nil, map[string]any{
			"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available",
		}),
	} {
		if r := run(t, cluster(t, job(map[string]any{"active": 1}), p), parameter); r.phase != "running" || r.message != want {
			t.Errorf("%+v", r)
		}
	}
}

func TestTheMessageFollowsTheStages(t *testing.T) {
	r := run(t, cluster(t, job(map[string]any{"active": 1}),
		configMap(jobName, map[string]any{"stage": "prove", "message": "proving the path through 2 nodes"})), parameter)
	if r.phase != "running" || r.message != "proving the path through 2 nodes" {
		t.Errorf("%+v", r)
	}
}

func TestSuccessHasAMessageAndOutputs(t *testing.T) {
	r := run(t, cluster(t, job(map[string]any{"succeeded": 1}), configMap(jobName, map[string]any{
		"stage": "done", "message": "business-a joined through proxy-east", "changed": "true",
		"endpoint": "https://a.example:30000", "nodePort": "30000", "nodeIPs": "10.80.0.21,10.80.0.22", "host": "a.example", "alias": "a.example",
	})), parameter)
	if r.phase != "succeeded" || r.message != "business-a joined through proxy-east" {
		t.Errorf("%+v", r)
	}
	want := map[string]string{
		"endpoint": `"https://a.example:30000"`, "host": `"a.example"`, "alias": `"a.example"`,
		"nodePort": `"30000"`, "nodeIPs": `"10.80.0.21,10.80.0.22"`, "endpoints": `""`, "plan": `""`,
	}
	if !reflect.DeepEqual(r.outputs, want) {
		t.Errorf("outputs %v", r.outputs)
	}
}

func TestSuccessWithoutProgressStillEnds(t *testing.T) {
	r := run(t, cluster(t, job(map[string]any{"succeeded": 1})), parameter)
	if r.phase != "succeeded" || r.message != "join of business-a is done" || !reflect.DeepEqual(r.outputs, nothing) {
		t.Errorf("%+v", r)
	}
}

func TestAFailureShowsCauseAndHint(t *testing.T) {
	r := run(t, cluster(t, failedJob("BackoffLimitExceeded"), pod("other", "not mine"), pod(session, "Secret x has no key y; set kubeconfig.key\n"),
		configMap(jobName, map[string]any{"stage": "read", "message": "reading the kubeconfig"})), parameter)
	if r.phase != "failed" || r.waiting {
		t.Errorf("%+v", r)
	}
	if want := "join of business-a failed (BackoffLimitExceeded): Secret x has no key y; set kubeconfig.key"; r.message != want {
		t.Errorf("%q", r.message)
	}
	if !reflect.DeepEqual(r.outputs, nothing) {
		t.Errorf("outputs %v", r.outputs)
	}
}

func TestAFailureWithoutAPodSaysWhereItStopped(t *testing.T) {
	r := run(t, cluster(t, failedJob("DeadlineExceeded"), configMap(jobName, map[string]any{"message": "proving the path"})), parameter)
	if want := "join of business-a failed (DeadlineExceeded): stopped at: proving the path"; r.message != want {
		t.Errorf("%q", r.message)
	}
	r = run(t, cluster(t, failedJob("DeadlineExceeded")), parameter)
	contains(t, r.message, "kubectl -n vela-system describe job "+jobName)
}

func TestTheJobsNameFitsWhateverTheApplicationIsCalled(t *testing.T) {
	if len(jobName) > 63-6 || !regexp.MustCompile(`^[a-z0-9-]+$`).MatchString(jobName) {
		t.Errorf("%s: pods add six characters, labels end at 63", jobName)
	}
}

func TestAListOfClustersReachesTheJob(t *testing.T) {
	hub := cluster(t, jobTemplate(t))
	r := run(t, hub, map[string]any{
		"region": "proxy-east", "labels": map[string]any{"tier": "idc", "zone": "x"},
		"clusters": []any{
			map[string]any{"cluster": "a", "kubeconfig": map[string]any{"secret": "s"}},
			map[string]any{"cluster": "b", "region": "proxy-west", "kubeconfig": map[string]any{"secret": "s", "key": "b"},
				"labels": map[string]any{"tier": "cloud"}, "nodePort": 30042},
			map[string]any{"cluster": "c", "kubeconfig": map[string]any{"secret": "s"}, "mode": "sni"},
		},
	})
	if r.phase != "running" || !r.waiting {
		t.Errorf("%+v", r)
	}
	want := []map[string]any{
		{"cluster": "a", "region": "proxy-east", "secret": "s", "key": "kubeconfig", "labels": map[string]any{"tier": "idc", "zone": "x"}, "mode": "port"},
		{"cluster": "b", "region": "proxy-west", "secret": "s", "key": "b", "labels": map[string]any{"tier": "cloud", "zone": "x"}, "nodePort": 30042.0, "mode": "port"},
		{"cluster": "c", "region": "proxy-east", "secret": "s", "key": "kubeconfig", "labels": map[string]any{"tier": "idc", "zone": "x"}, "mode": "sni"},
	}
	args := createdJob(t, hub).Spec.Template.Spec.Containers[0].Args
	if got := members(t, hub); len(args) != 6 || !reflect.DeepEqual(got, want) {
		t.Errorf("args %v", args)
	}
}

// members is what the Job is told of each cluster of a list.
func members(t *testing.T, hub client.Client) []map[string]any {
	t.Helper()
	var members []map[string]any
	for _, arg := range createdJob(t, hub).Spec.Template.Spec.Containers[0].Args {
		if text, found := strings.CutPrefix(arg, "--member="); found {
			var member map[string]any
			decode(t, text, &member)
			members = append(members, member)
		}
	}
	return members
}

func TestBoundsOfAListHoldWhereAClusterHasNoneOfItsOwn(t *testing.T) {
	hub := cluster(t, jobTemplate(t))
	run(t, hub, map[string]any{
		"region": "proxy-east", "sourceRanges": []string{"10.0.0.0/8"}, "maxConnections": 20,
		"clusters": []any{
			map[string]any{"cluster": "a", "kubeconfig": map[string]any{"secret": "s"}},
			map[string]any{"cluster": "b", "kubeconfig": map[string]any{"secret": "s"}, "sourceRanges": []string{"192.0.2.1"}, "maxConnections": 40},
		},
	})
	want := [][2]any{{[]any{"10.0.0.0/8"}, 20.0}, {[]any{"192.0.2.1"}, 40.0}}
	var got [][2]any
	for _, member := range members(t, hub) {
		got = append(got, [2]any{member["sourceRanges"], member["maxConnections"]})
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
}

// One that is left out would bound nothing.
func TestAParameterThatIsWrongRunsNoJob(t *testing.T) {
	for _, c := range []struct {
		parameter string
		value     any
	}{
		{"nodePort", "30007"},
		{"sourceRanges", "10.0.0.0/8"},
		{"maxConnections", 0},
		{"maxConnections", -1},
		{"maxConnections", 65536},
		{"maxConnections", "20"},
	} {
		ofList := map[string]any{"cluster": "a", "kubeconfig": map[string]any{"secret": "s"}, c.parameter: c.value}
		for where, parameters := range map[string]map[string]any{
			"one":       with(c.parameter, c.value),
			"of a list": {"region": "proxy-east", "clusters": []any{ofList}},
		} {
			hub := cluster(t, jobTemplate(t))
			r := run(t, hub, parameters)
			var jobs batchv1.JobList
			if err := hub.List(context.Background(), &jobs); err != nil || len(jobs.Items) > 0 || r.phase != "failed" {
				t.Errorf("%s, %s: %v: %d Jobs, %v, %+v", where, c.parameter, c.value, len(jobs.Items), err, r)
			}
		}
	}
}

func TestOneClusterOrAList(t *testing.T) {
	list := []any{map[string]any{"cluster": "a", "kubeconfig": map[string]any{"secret": "s"}}}
	for want, parameter := range map[string]map[string]any{
		"give either cluster or clusters":         with("clusters", list),
		"give cluster and its kubeconfig":         {"region": "proxy-east"},
		"cluster business-a needs its kubeconfig": {"region": "proxy-east", "cluster": "business-a"},
		"kubeconfig is of one cluster":            {"region": "proxy-east", "clusters": list, "kubeconfig": map[string]any{"secret": "s"}},
		"nodePort is of one cluster":              {"region": "proxy-east", "clusters": list, "nodePort": 30007},
	} {
		hub := cluster(t, jobTemplate(t))
		r := run(t, hub, parameter)
		if r.phase != "failed" {
			t.Errorf("%+v", r)
		}
		contains(t, r.message, want)
		var jobs batchv1.JobList
		if err := hub.List(context.Background(), &jobs); err != nil || len(jobs.Items) > 0 {
			t.Errorf("%d Jobs, %v", len(jobs.Items), err)
		}
	}
}

func TestADryRunPlans(t *testing.T) {
	for definition, want := range map[string][]string{
		"xregion-join":  {"plan", "join", "--timeout=10m", "--region=proxy-east", "--secret=business-a-kubeconfig", "--secret-key=kubeconfig", "--", "business-a"},
		"xregion-leave": {"plan", "leave", "--timeout=10m", "--", "business-a"},
	} {
		parameters := map[string]any{"cluster": "business-a", "dryRun": true}
		if definition == "xregion-join" {
			parameters = with("dryRun", true)
		}
		hub := cluster(t, jobTemplate(t))
		runStep(t, hub, definition, parameters)
		if args := createdJob(t, hub).Spec.Template.Spec.Containers[0].Args; !reflect.DeepEqual(args, want) {
			t.Errorf("args %v", args)
		}
	}
}

func TestALeaveRunsAJobOfItsOwn(t *testing.T) {
	hub := cluster(t, jobTemplate(t))
	r := runStep(t, hub, "xregion-leave", map[string]any{"cluster": "business-a", "force": true, "region": "proxy-east"})
	if r.phase != "running" || !r.waiting {
		t.Errorf("%+v", r)
	}
	j := createdJob(t, hub)
	if !strings.HasPrefix(j.Name, "xregion-leave-") {
		t.Errorf("%s", j.Name)
	}
	want := []string{"leave", "--here", "--timeout=10m", "--region=proxy-east", "--force", "--", "business-a"}
	if args := j.Spec.Template.Spec.Containers[0].Args; !reflect.DeepEqual(args, want) {
		t.Errorf("args %v", args)
	}
}
