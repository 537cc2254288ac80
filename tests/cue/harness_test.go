// Package cue_test evaluates the addon and its definitions with KubeVela's own code, as staged by `make stage`: what is
// tested is what gets enabled.
package cue_test

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubevela/pkg/cue/cuex"
	"github.com/kubevela/pkg/util/singleton"
	"github.com/kubevela/workflow/pkg/cue/process"
	"github.com/oam-dev/kubevela/apis/core.oam.dev/v1beta1"
	"github.com/oam-dev/kubevela/pkg/addon"
	componentdef "github.com/oam-dev/kubevela/pkg/cue/definition"
	velaprocess "github.com/oam-dev/kubevela/pkg/cue/process"
	"github.com/oam-dev/kubevela/pkg/definition"
	"helm.sh/helm/v3/pkg/chart/loader"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/yaml"
)

const staged = "../../dist/xregion"

func TestMain(m *testing.M) {
	// packages from a cluster, which there is none of
	cuex.EnableExternalPackageForDefaultCompiler = false
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	os.Exit(m.Run())
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (run `make stage` first)", err)
	}
	return string(content)
}

func must[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// loadDefinition reads a staged definition as `vela addon enable` does.
func loadDefinition(t *testing.T, name string) *definition.Definition {
	t.Helper()
	d := &definition.Definition{Unstructured: unstructured.Unstructured{}}
	if err := d.FromCUEString(read(t, filepath.Join(staged, "definitions", name+".cue")), nil); err != nil {
		t.Fatal(err)
	}
	return d
}

func templateOf(t *testing.T, d *definition.Definition) string {
	t.Helper()
	template, found, err := unstructured.NestedString(d.Object, "spec", "schematic", "cue", "template")
	if err != nil || !found {
		t.Fatalf("no template in %s: %v", d.GetName(), err)
	}
	return template
}

// installPackage reads the staged addon as a registry serves it.
func installPackage(t *testing.T) *addon.InstallPackage {
	t.Helper()
	var files []*loader.BufferedFile
	err := filepath.WalkDir(staged, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		relative, err := filepath.Rel(staged, path)
		if err != nil {
			return err
		}
		files = append(files, &loader.BufferedFile{Name: relative, Data: []byte(read(t, path))})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	reader := addon.MemoryReader{Name: "xregion", Files: files}
	metas := must(reader.ListAddonMeta())(t)
	meta := metas["xregion"]
	ui := must(addon.GetUIDataFromReader(&reader, &meta, addon.UIMetaOptions))(t)
	return must(addon.GetInstallPackageFromReader(&reader, &meta, ui))(t)
}

// renderAddon returns the objects the addon creates with these parameters, by "Kind/name".
func renderAddon(t *testing.T, parameters map[string]any) (*v1beta1.Application, map[string]unstructured.Unstructured, error) {
	t.Helper()
	app, _, err := addon.RenderApp(context.Background(), installPackage(t), nil, parameters)
	if err != nil {
		return nil, nil, err
	}
	objects := map[string]unstructured.Unstructured{}
	for _, component := range app.Spec.Components {
		var properties struct{ Objects []map[string]any }
		if err := json.Unmarshal(component.Properties.Raw, &properties); err != nil {
			t.Fatal(err)
		}
		for _, object := range properties.Objects {
			u := unstructured.Unstructured{Object: object}
			name := u.GetKind() + "/" + u.GetName()
			if namespace := u.GetNamespace(); namespace != "" && namespace != app.Namespace {
				name = u.GetKind() + "/" + namespace + "/" + u.GetName()
			}
			objects[name] = u
		}
	}
	return app, objects, nil
}

// cluster is a hub of objects, and the client KubeVela's packages use.
func cluster(t *testing.T, objects ...map[string]any) client.Client {
	t.Helper()
	builder := fake.NewClientBuilder().WithScheme(scheme(t))
	for _, object := range objects {
		builder = builder.WithObjects(&unstructured.Unstructured{Object: normal(t, object)})
	}
	c := builder.Build()
	singleton.KubeClient.Set(c)
	return c
}

// normal gives every number the type JSON decoding gives it.
func normal(t *testing.T, object map[string]any) map[string]any {
	t.Helper()
	var out map[string]any
	decode(t, string(must(json.Marshal(object))(t)), &out)
	return out
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(text), into); err != nil {
		t.Fatal(err)
	}
}

// decodeStrictly refuses fields that the type has not.
func decodeStrictly(t *testing.T, text string, into any) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		t.Fatal(err)
	}
}

// completeComponent renders a component as KubeVela does: its output and its other objects.
func completeComponent(t *testing.T, definition, app, name string, parameters map[string]any) (*unstructured.Unstructured, []process.Auxiliary, error) {
	t.Helper()
	ctx := velaprocess.NewContext(velaprocess.ContextData{
		Ctx: context.Background(), AppName: app, CompName: name, Namespace: "default", Cluster: "proxy-east", AppRevisionName: app + "-v1",
	})
	template := templateOf(t, loadDefinition(t, definition))
	if err := componentdef.NewWorkloadAbstractEngine(definition).Complete(ctx, template, parameters); err != nil {
		return nil, nil, err
	}
	base, others := ctx.Output()
	// an incomplete value shows here
	output, err := base.Unstructured()
	return output, others, err
}

// at walks maps and lists: at(t, object, "spec", "containers", 0, "args").
func at(t *testing.T, value any, path ...any) any {
	t.Helper()
	for i, step := range path {
		switch key := step.(type) {
		case string:
			m, ok := value.(map[string]any)
			if !ok {
				t.Fatalf("no map at %v", path[:i])
			}
			if value, ok = m[key]; !ok {
				t.Fatalf("no %v", path[:i+1])
			}
		case int:
			list, ok := value.([]any)
			if !ok || key >= len(list) {
				t.Fatalf("no %v", path[:i+1])
			}
			value = list[key]
		}
	}
	return value
}

func contains(t *testing.T, text, part string) {
	t.Helper()
	if !strings.Contains(text, part) {
		t.Errorf("%q does not contain %q", text, part)
	}
}
