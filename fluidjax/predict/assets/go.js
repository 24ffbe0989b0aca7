// A button in the table of regions moves the viewer to its region.
document.querySelectorAll('button[data-go]').forEach(button => {
  button.onclick = () => {
    window.dispatchEvent(new CustomEvent('fluidjax-go', {detail: JSON.parse(button.dataset.go)}));
    document.getElementById('viewer')?.scrollIntoView({behavior: 'smooth', block: 'center'});
  };
});
