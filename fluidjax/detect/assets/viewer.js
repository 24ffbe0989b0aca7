(() => {
  // The border of the lesion or mask, in the pictures' cyan.
  const LABELS = {R: [0, 25], G: [0, 200], B: [0, 255], A: [0, 255], I: [0, 1],
                  labels: ['', 'lesion']};
  // As the pictures' colours, but nothing at 0 and no white at the top: a grey scan would hide it.
  const HEAT = {R: [90, 255, 255, 255], G: [0, 0, 150, 255], B: [0, 0, 0, 0],
                A: [0, 255, 255, 255], I: [0, 90, 170, 255]};
  const part = name => document.getElementById('viewer-' + name);
  const subjects = JSON.parse(part('data').textContent), loaded = new Map();
  const note = part('note').textContent;
  let nv, shown;
  const status = text => { document.getElementById('viewer').dataset.status = text; };
  async function code() {
    const bytes = Uint8Array.from(atob(part('code').textContent), c => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
    const script = document.createElement('script');
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }
  function volume(base64, name, more) {
    return niivue.NVImage.loadFromBase64({base64, name: name + '.nii.gz', ...more});
  }
  async function load(subject) {
    const grey = {colormap: 'gray', cal_min: 0, cal_max: subject.grey, colorbarVisible: false};
    const [scan, counterpart, map, lesion] = await Promise.all([
      volume(subject.scan, 'scan', grey),
      subject.counterpart && volume(subject.counterpart, 'counterpart', grey),
      volume(subject.map, 'map', {colormap: 'fluidjax', cal_min: 0, cal_max: subject.top}),
      subject.lesion && volume(subject.lesion, 'lesion', {colorbarVisible: false})]);
    map.colormapType = 2;  // colours run from 0, and below cal_min nothing is drawn
    if (lesion) {
      lesion.setColormapLabel(LABELS);
      lesion.opacity = 0.02;  // of its inside; its border is as opaque as atlasOutline
    }
    return {subject, scan, counterpart, map, lesion};
  }
  function draw() {
    const level = Number(part('threshold').value), step = shown.subject.step;
    const base = part('counterpart').checked && shown.counterpart || shown.scan;
    shown.map.cal_min = (level - 0.5) * step;
    shown.map.opacity = Number(part('opacity').value);
    part('value').value = (level * step).toPrecision(3);
    nv.volumes = [base, shown.map];
    if (shown.lesion && part('lesion').checked) nv.volumes.push(shown.lesion);
    nv.setVolume(base, 0);
  }
  async function choose() {
    const index = Number(part('subject').value);
    status('loading');
    if (!loaded.has(index)) loaded.set(index, await load(subjects[index]));
    if (index !== Number(part('subject').value)) return;  // another one was chosen meanwhile
    shown = loaded.get(index);
    const {subject} = shown;
    part('threshold').value = subject.level;
    part('counterpart').disabled = !shown.counterpart;
    part('lesion').disabled = !shown.lesion;
    draw();
    nv.scene.crosshairPos = nv.mm2frac(subject.centre);
    nv.createOnLocationChange();
    nv.drawScene();
    status('ready');
  }
  async function start() {
    if (!document.createElement('canvas').getContext('webgl2')) return;
    await code();
    document.getElementById('viewer').hidden = false;
    nv = new niivue.Niivue({
      sliceType: 3, multiplanarLayout: 3, multiplanarShowRender: 0, multiplanarPadPixels: 8,
      isRadiologicalConvention: false, sagittalNoseLeft: false, showAllOrientationMarkers: true,
      isNearestInterpolation: true, isColorbar: true, atlasOutline: 0.85,
      backColor: [0, 0, 0, 1], fontColor: [0.85, 0.9, 0.95, 1], fontMinPx: 14,
      crosshairColor: [0.3, 0.9, 0.4, 0.7], crosshairWidth: 0.5, crosshairWidthUnit: 'percent',
      crosshairGap: 6, dragAndDropEnabled: false, loadingText: '', logLevel: 'error'});
    nv.onLocationChange = place => {
      part('place').textContent = 'x y z: ' + Array.from(place.mm).slice(0, 3)
        .map(v => v.toFixed(0)).join(' ') + ' mm · ' + place.values
        .filter(v => !v.name.startsWith('lesion'))
        .map(v => v.name.split('.')[0] + ' ' + v.value.toPrecision(3)).join(' · ');
    };
    await nv.attachToCanvas(part('canvas'));
    nv.addColormap('fluidjax', HEAT);
    part('note').textContent = part('note').dataset.help;
    part('subject').onchange = choose;
    for (const name of ['counterpart', 'opacity', 'threshold', 'lesion']) part(name).oninput = draw;
    window.addEventListener('fluidjax-go', event => {  // a place in mm, from elsewhere in the page
      nv.scene.crosshairPos = nv.mm2frac(event.detail);
      nv.createOnLocationChange();
      nv.drawScene();
    });
    await choose();
  }
  start().catch(error => {
    console.error(error);
    document.getElementById('viewer').hidden = true;
    part('note').textContent = note;
  });
})();
