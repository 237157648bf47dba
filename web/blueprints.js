/** The inputs of a Steer blueprint have tooltips: the editor itself knows none for the inputs of a subgraph. */
import { app } from '../../scripts/app.js'

/** The editor's node definitions by type, where its tooltips come from. */
const definitions = () =>
    document.getElementById('vue-app')?.__vue_app__?.config.globalProperties.$pinia?.state.value.nodeDef?.nodeDefsByName

app.registerExtension({
    name: 'Steer.Blueprints',
    nodeCreated(node) {
        const tooltips = node.subgraph?.extra?.steer_tooltips
        const inputs = tooltips && definitions()?.[node.type]?.inputs
        if (!inputs) return
        for (const { name, type } of node.inputs)
            if (tooltips[name]) inputs[name] = { name, type, tooltip: tooltips[name] }
    },
})
