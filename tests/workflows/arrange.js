// What build.py has the front end do with a loaded graph.
({
  // width and height that each node asks for, by id
  sizes: () => app.graph.nodes.map((node) => [String(node.id), [...node.computeSize()]]),

  // in Nodes 2.0: the heights of the elements, titles included
  heights: () => app.graph.nodes.map((node) => {
    const element = document.querySelector(`[data-node-id="${node.id}"]`)
    return [String(node.id), (element?.getBoundingClientRect().height ?? 0) / app.canvas.ds.scale]
  }),

  place: ({ nodes, groups, note, text }) => {
    for (const [id, [x, y, width, height]] of Object.entries(nodes)) {
      const node = app.graph.getNodeById(Number(id))
      node.setSize([width, height])
      node.pos = [x, y]
      for (const widget of node.widgets ?? []) {
        if (widget.name === 'control_after_generate') widget.value = 'fixed'
      }
    }
    for (const [title, [x, y, width, height]] of groups) {
      const group = new LiteGraph.LGraphGroup(title)
      group.pos = [x, y]
      group.size = [width, height]
      app.graph.add(group)
    }
    const [x, y, width, height] = note
    const written = LiteGraph.createNode('MarkdownNote')
    app.graph.add(written)
    written.title = 'Read me'
    written.pos = [x, y]
    written.setSize([width, height])
    written.widgets[0].value = text
    const saved = app.graph.serialize()
    saved.extra = {}
    return JSON.stringify(saved)
  },
})
